// A GPU on the host, as far as kernels can tell: blocks one after another, the threads of a block
// as fibers that take turns at barriers and warp shuffles, and memory that knows who may touch it.
//
// What only luck would let pass on a GPU is an error here, with a sentence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

namespace robustflow::emulator {

using Place = std::source_location;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which blocks, and the threads of a block between two barriers, are taken. A kernel
// that needs a barrier that is not there gives another result in one of them.
enum class Order : int { forward, reverse, shuffled };
void set_order(Order order, std::uint64_t seed);

// ---- the device --------------------------------------------------------------------------------

inline constexpr int kWarp = 32;
// Invented, and small, so that kernels walk over small tensors in several steps of the grid.
inline constexpr int kMultiprocessors = 3;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kSharedBytes = 99 * 1024;  // of a block
inline constexpr int kMultiprocessorSharedBytes = 100 * 1024;

// ---- memory ------------------------------------------------------------------------------------

// What memory holds that nobody has written: NaN in every type of ours, and another one in outputs,
// so that a result that was made of what nobody had written is not taken for one that is missing.
inline constexpr std::uint16_t kPoison = 0xffc1, kUnwritten = 0xffff;

// A block of exactly `bytes`, `lead` bytes behind a multiple of 16, filled with poison. Under
// AddressSanitizer a byte beyond it is an error, and so is a kernel that touches the host's memory
// or a host that touches the device's. A vast block, of which a test touches a few pages, is left
// as it is and open to both.
class Memory {
 public:
  enum class Side { host, device };

  Memory(Side side, std::size_t bytes, std::size_t lead = 0);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return block_ + lead_; }
  std::size_t bytes() const { return bytes_; }
  Side side() const { return side_; }
  bool is_vast() const { return bytes_ > kVast; }

  // For whoever runs the kernels: lets both sides in, or only its own.
  void open() const;
  void close() const;
  // Fills all of it again, and the bytes before it.
  void fill(std::uint16_t blank);
  // Whether `count` bytes from `at` on hold what it was filled with, or those before it do.
  bool is_blank(std::size_t at, std::size_t count) const;
  bool lead_is_blank() const;

 private:
  static constexpr std::size_t kVast = std::size_t(1) << 28;

  bool is_blank_from(std::size_t begin, std::size_t end) const;

  Side side_;
  std::size_t bytes_, lead_;
  std::uint16_t blank_ = 0;
  char* block_;
};

// ---- kernels -----------------------------------------------------------------------------------

// Where the running thread is.
struct Position {
  int thread, threads;
  std::uint32_t block, blocks;
  void* shared;
};
extern Position position;

// A sentence about the running thread ends the launch with an Error.
[[noreturn]] void fail(const std::string& sentence, const Place& place);

// All threads of the block wait here.
void wait_at_barrier(const Place& place);
// All threads of the warp meet here: `out` is the `in` of the thread whose index differs in `mask`.
void exchange(const void* in, void* out, std::size_t bytes, int mask, const Place& place);

// A copy into the block's shared memory that arrives when this thread calls finish_copies(), and
// leaves poison there until then.
void copy_later(void* to, const void* from, std::size_t bytes, const Place& place);
void finish_copies();

// Runs body(context), which calls the kernel, in every thread of at most kMultiprocessors blocks;
// before that, the checks that a real launch makes.
void run_grid(const void* kernel, std::int64_t blocks, int threads, int shared_bytes,
              void (*body)(void*), void* context);

// What has been launched so far.
std::int64_t count_launches();
std::vector<const void*> kernels_launched();

}  // namespace robustflow::emulator
