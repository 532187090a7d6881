#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace robustflow::emulator {

Position position;

namespace {

Order chosen_order = Order::forward;
std::uint64_t random_state = 1;

// SplitMix64: whole words that look random.
std::uint64_t random_word() {
  std::uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Numbers in the chosen order; the shuffled one is another every time.
void arrange(std::vector<int>& numbers) {
  std::sort(numbers.begin(), numbers.end());
  if (chosen_order == Order::reverse) std::reverse(numbers.begin(), numbers.end());
  if (chosen_order != Order::shuffled) return;
  for (std::size_t i = numbers.size(); i > 1; --i) {
    std::swap(numbers[i - 1], numbers[random_word() % i]);
  }
}

std::vector<int> arranged(int count) {
  std::vector<int> numbers(count);
  for (int i = 0; i < count; ++i) numbers[i] = i;
  arrange(numbers);
  return numbers;
}

std::set<const Memory*>& all_memory() {
  static std::set<const Memory*> all;
  return all;
}

// How often each kernel has run.
std::map<const void*, std::int64_t> launches;

// While kernels run, the device's memory is open and the host's is closed.
class DeviceAtWork {
 public:
  DeviceAtWork() { change(Memory::Side::device); }
  ~DeviceAtWork() { change(Memory::Side::host); }

 private:
  static void change(Memory::Side open) {
    for (const Memory* memory : all_memory()) {
      memory->side() == open ? memory->open() : memory->close();
    }
  }
};

std::string text(const Place& place) {
  const char* name = std::strrchr(place.file_name(), '/');
  return std::string(name ? name + 1 : place.file_name()) + ":" + std::to_string(place.line());
}

enum class State { ready, barrier, shuffle, done };

// What is on its way to shared memory.
struct Copy {
  char* to;
  std::vector<char> bytes;
};

struct Thread {
  Fiber fiber;
  int index = 0;
  State state = State::done;
  Place place;
  int mask = 0;
  std::size_t bytes = 0;
  char sent[16], received[16];
  std::vector<Copy> copies;
};

// The launch that runs; threads and their stacks are kept from launch to launch.
struct Grid {
  std::vector<std::unique_ptr<Thread>> threads;
  Thread* running = nullptr;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  std::ptrdiff_t shared_bytes = 0;
  std::exception_ptr error;

  void run_block(int threads_a_block);
  void run_ready(const std::vector<int>& order);
  bool release(int count);
  bool release_warp(int first);
  void release_barrier(int count);
  [[noreturn]] void explain_deadlock(int count) const;
};
Grid grid;

void thread_entry(void* context) {
  Thread& thread = *static_cast<Thread*>(context);
  try {
    grid.body(grid.context);
  } catch (...) {
    grid.error = std::current_exception();
  }
  thread.state = State::done;
  thread.fiber.finish();
}

void Grid::run_ready(const std::vector<int>& order) {
  for (const int i : order) {
    if (threads[i]->state != State::ready) continue;
    running = threads[i].get();
    position.thread = i;
    running->fiber.resume();
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }
}

// A warp whose threads all wait at a shuffle goes on.
bool Grid::release_warp(int first) {
  Thread* warp[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    warp[lane] = threads[first + lane].get();
    if (warp[lane]->state != State::shuffle) return false;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    Thread& thread = *warp[lane];
    const Thread& other = *warp[(lane ^ thread.mask) % kWarp];
    if (thread.mask < 0 || thread.mask >= kWarp || other.bytes != thread.bytes) {
      throw Error("The shuffle at " + text(thread.place) +
                  " meets another one, or reaches out of its warp.");
    }
    std::memcpy(thread.received, other.sent, thread.bytes);
  }
  for (Thread* thread : warp) thread->state = State::ready;
  return true;
}

// The block goes on if all its threads wait at a barrier, at the same one.
void Grid::release_barrier(int count) {
  const Place& place = threads[0]->place;
  for (int i = 0; i < count; ++i) {
    if (threads[i]->place.line() != place.line() ||
        std::strcmp(threads[i]->place.file_name(), place.file_name())) {
      throw Error("Threads of a block wait at two barriers, " + text(place) + " and " +
                  text(threads[i]->place) + ": all must come to the same one.");
    }
  }
  for (int i = 0; i < count; ++i) threads[i]->state = State::ready;
}

bool Grid::release(int count) {
  bool any = false;
  for (int first = 0; first + kWarp <= count; first += kWarp) any = release_warp(first) || any;
  const bool all = std::all_of(threads.begin(), threads.begin() + count,
                               [](const auto& thread) { return thread->state == State::barrier; });
  if (all) release_barrier(count);
  return any || all;
}

void Grid::explain_deadlock(int count) const {
  int at[4] = {};
  const Thread* waiting[4] = {};
  for (int i = 0; i < count; ++i) {
    const int state = static_cast<int>(threads[i]->state);
    ++at[state];
    if (!waiting[state]) waiting[state] = threads[i].get();
  }
  std::string sentence = "A block waits for ever: of its " + std::to_string(count) + " threads";
  const auto tell = [&](State state, const char* verb, bool where) {
    const int i = static_cast<int>(state);
    if (at[i] == 0) return;
    sentence += " " + std::to_string(at[i]) + " " + verb;
    if (where) sentence += " (" + text(waiting[i]->place) + ")";
    sentence += ",";
  };
  tell(State::barrier, "wait at a barrier", true);
  tell(State::shuffle, "wait at a shuffle", true);
  tell(State::done, "have returned", false);
  sentence.back() = '.';
  throw Error(sentence +
              " All threads of a block must come to a barrier, and all of a warp to a "
              "shuffle.");
}

void Grid::run_block(int count) {
  std::vector<int> order = arranged(count);
  for (int i = 0; i < count; ++i) {
    Thread& thread = *threads[i];
    thread.state = State::ready;
    thread.copies.clear();
    thread.fiber.start(thread_entry, &thread);
  }
  for (;;) {
    run_ready(order);
    const auto done = [](const auto& thread) { return thread->state == State::done; };
    if (std::all_of(threads.begin(), threads.begin() + count, done)) return;
    if (!release(count)) explain_deadlock(count);
    if (chosen_order == Order::shuffled) arrange(order);
  }
}

void wait(State state, const Place& place) {
  Thread& thread = *grid.running;
  thread.state = state;
  thread.place = place;
  thread.fiber.suspend();
}

[[noreturn]] void refuse(const std::string& what, const std::string& limit) {
  throw Error("A GPU would refuse this launch: " + what + ", " + limit + ".");
}

}  // namespace

void set_order(Order order, std::uint64_t seed) {
  chosen_order = order;
  random_state = seed;
}

Memory::Memory(Side side, std::size_t bytes, std::size_t lead)
    : side_(side), bytes_(bytes), lead_(lead) {
  block_ = static_cast<char*>(std::malloc(lead + bytes));
  if (!block_) throw std::bad_alloc();
  fill(kPoison);
  if (side == Side::device) close();
  all_memory().insert(this);
}
Memory::~Memory() {
  all_memory().erase(this);
  open();
  std::free(block_);
}
void Memory::open() const {
  if (!is_vast()) ASAN_UNPOISON_MEMORY_REGION(block_, lead_ + bytes_);
}
void Memory::close() const {
  if (!is_vast()) ASAN_POISON_MEMORY_REGION(block_, lead_ + bytes_);
}
void Memory::fill(std::uint16_t blank) {
  blank_ = blank;
  const std::size_t end = is_vast() ? lead_ : lead_ + bytes_;
  for (std::size_t i = 0; i < end; ++i) block_[i] = static_cast<char>(i % 2 ? blank >> 8 : blank);
}
bool Memory::is_blank_from(std::size_t begin, std::size_t end) const {
  for (std::size_t i = begin; i < end; ++i) {
    if (block_[i] != static_cast<char>(i % 2 ? blank_ >> 8 : blank_)) return false;
  }
  return true;
}
bool Memory::is_blank(std::size_t at, std::size_t count) const {
  return is_blank_from(lead_ + at, lead_ + at + count);
}
bool Memory::lead_is_blank() const { return is_blank_from(0, lead_); }

std::int64_t count_launches() {
  std::int64_t count = 0;
  for (const auto& [kernel, times] : launches) count += times;
  return count;
}
std::vector<const void*> kernels_launched() {
  std::vector<const void*> kernels;
  for (const auto& [kernel, times] : launches) kernels.push_back(kernel);
  return kernels;
}

void fail(const std::string& sentence, const Place& place) {
  throw Error(sentence + " Thread " + std::to_string(position.thread) + " of block " +
              std::to_string(position.block) + ", " + text(place) + ".");
}

void wait_at_barrier(const Place& place) { wait(State::barrier, place); }

void exchange(const void* in, void* out, std::size_t bytes, int mask, const Place& place) {
  if (position.thread / kWarp >= position.threads / kWarp) {
    fail("A shuffle names threads that the last warp of this block does not have.", place);
  }
  Thread& thread = *grid.running;
  std::memcpy(thread.sent, in, bytes);
  thread.bytes = bytes;
  thread.mask = mask;
  wait(State::shuffle, place);
  std::memcpy(out, thread.received, bytes);
}

void copy_later(void* to, const void* from, std::size_t bytes, const Place& place) {
  const char* const source = static_cast<const char*>(from);
  char* const target = static_cast<char*>(to);
  char* const shared = static_cast<char*>(position.shared);
  if (target < shared || target + bytes > shared + grid.shared_bytes) {
    fail("A copy to shared memory goes elsewhere.", place);
  }
  grid.running->copies.push_back({target, {source, source + bytes}});
  for (std::size_t i = 0; i < bytes; ++i) {
    target[i] = static_cast<char>(i % 2 ? kPoison >> 8 : kPoison);
  }
}
void finish_copies() {
  for (const Copy& copy : grid.running->copies) {
    std::copy(copy.bytes.begin(), copy.bytes.end(), copy.to);
  }
  grid.running->copies.clear();
}

void run_grid(const void* kernel, std::int64_t blocks, int threads, int shared_bytes,
              void (*body)(void*), void* context) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (blocks < 1) refuse(std::to_string(blocks) + " blocks", "and a grid has at least one");
  if (threads < 1 || threads > kMaxThreads) {
    refuse(std::to_string(threads) + " threads a block", "and a block has between 1 and 1024");
  }
  if (shared_bytes < 0 || shared_bytes > kSharedBytes) {
    refuse(std::to_string(shared_bytes) + " bytes of shared memory",
           "and a block can have " + std::to_string(kSharedBytes));
  }
  while (grid.threads.size() < static_cast<std::size_t>(threads)) {
    grid.threads.push_back(std::make_unique<Thread>());
  }
  ++launches[kernel];
  grid.body = body;
  grid.context = context;
  grid.shared_bytes = shared_bytes;
  const DeviceAtWork at_work;
  const auto resident =
      static_cast<std::uint32_t>(std::min<std::int64_t>(blocks, kMultiprocessors));
  for (const int block : arranged(static_cast<int>(resident))) {
    const Memory shared(Memory::Side::device, shared_bytes);
    shared.open();
    position = {0, threads, static_cast<std::uint32_t>(block), resident, shared.data()};
    try {
      grid.run_block(threads);
    } catch (...) {  // the other threads never end
      for (const auto& thread : grid.threads) thread->fiber.reset();
      throw;
    }
  }
}

}  // namespace robustflow::emulator
