// Small kernels, most with a fault, for the tests of the emulator itself: probes NAME [ORDER].
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>

#include "cuda/device.h"

namespace robustflow {
namespace {

using emulator::Memory;

constexpr int kThreads = 96;

// Device memory of whole numbers, and their way to and from the host.
struct Numbers {
  Memory memory;
  int count;

  explicit Numbers(int count_)
      : memory(Memory::Side::device, count_ * sizeof(int)), count(count_) {}
  int* device() const { return reinterpret_cast<int*>(memory.data()); }
  void print() const {
    memory.open();
    for (int i = 0; i < count; ++i) std::printf("%d ", device()[i]);
    std::printf("\n");
    memory.close();
  }
};

// ---- what is right -----------------------------------------------------------------------------

ROBUSTFLOW_KERNEL(kThreads, 1) reverse_numbers(int* out) {
  int* const shared = shared_memory<int>();
  shared[thread_index()] = thread_index();
  barrier();
  out[block_index() * block_threads() + thread_index()] =
      shared[block_threads() - 1 - thread_index()];
}
ROBUSTFLOW_KERNEL(kThreads, 1) add_warps(int* out) {
  int sum = thread_index();
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % kWarp == 0) out[thread_index() / kWarp] = sum;
}
// The first thread to come takes 0, the next one 1, and so on.
ROBUSTFLOW_KERNEL(kThreads, 1) turns(int* next, int* out) {
  out[block_index() * block_threads() + thread_index()] = (*next)++;
}
// Four numbers before and after a copy of them has been waited for.
ROBUSTFLOW_KERNEL(kThreads, 1) copy_numbers(const int* from, int* out) {
  if (thread_index() > 0) return;
  int* const shared = shared_memory<int>();
  copy_async(shared, from);
  for (int i = 0; i < 4; ++i) out[i] = shared[i] == from[i];
  wait_for_copies();
  for (int i = 0; i < 4; ++i) out[4 + i] = shared[i] == from[i];
}
ROBUSTFLOW_KERNEL(kThreads, 1) set_zero(int* out) { *out = 0; }

// ---- what is wrong -----------------------------------------------------------------------------

ROBUSTFLOW_KERNEL(kThreads, 1) no_barrier(int* out) {
  int* const shared = shared_memory<int>();
  shared[thread_index()] = thread_index();
  out[thread_index()] = shared[thread_index() / 2];  // written before, if threads go forward
}
ROBUSTFLOW_KERNEL(kThreads, 1) some_at_a_barrier(int*) {
  if (thread_index() < 5) barrier();
}
ROBUSTFLOW_KERNEL(kThreads, 1) two_barriers(int*) {
  if (thread_index() < 5) {
    barrier();
  } else {
    barrier();
  }
}
ROBUSTFLOW_KERNEL(kThreads, 1) some_at_a_shuffle(int* out) {
  if (thread_index() < 5) *out = shuffle_xor(1, 1);
}
ROBUSTFLOW_KERNEL(kThreads, 1) write_beyond(int* out) { out[thread_index() + 1] = 0; }
ROBUSTFLOW_KERNEL(kThreads, 1) write_beyond_shared(int*) {
  shared_memory<int>()[thread_index() + 1] = 0;
}
ROBUSTFLOW_KERNEL(kThreads, 1) read_words(const int* from, int* out) {
  out[0] = static_cast<int>(load_words(from).word[0]);
}
ROBUSTFLOW_KERNEL(kThreads, 1) read_number(const double* from, int* out) {
  *out = static_cast<int>(*from);
}

// ---- approximations ----------------------------------------------------------------------------

// The largest error of an approximation, in units of the last place of the exact value.
template <class Approximation, class Exact>
double worst(float low, float high, const Approximation& approximation, const Exact& exact) {
  std::mt19937 random(0);
  std::uniform_real_distribution<float> inputs(low, high);
  double largest = 0;
  for (int i = 0; i < 100000; ++i) {
    const float v = inputs(random);
    const double wanted = exact(double(v));
    const double ulp = std::ldexp(1.0, std::ilogb(wanted) - 23);
    largest = std::max(largest, std::fabs(approximation(v) - wanted) / ulp);
  }
  return largest;
}

void print_approximations() {
  std::printf("reciprocal %g\n",
              worst(1, 2, emulator::reciprocal_approximately, [](double v) { return 1 / v; }));
  std::printf("square_root %g\n", worst(1, 4, emulator::square_root_approximately,
                                        [](double v) { return std::sqrt(v); }));
  std::printf("exp2 %g\n", worst(-0.5, 0.5, emulator::exp2_approximately,
                                 [](double v) { return std::exp2(v); }));
  std::printf("division %g\n", worst(
                                   1, 4, [](float v) { return (FastFloat(1) / FastFloat(v)).v; },
                                   [](double v) { return 1 / v; }));
  std::printf("exponential %g\n", worst(
                                      -80, 80, [](float v) { return exponential(FastFloat(v)).v; },
                                      [](double v) { return std::exp(v); }));
  const float tiny = 1e-40f, huge = 3e38f;
  std::printf("flushed %g %g %g %g\n", emulator::reciprocal_approximately(tiny),
              emulator::reciprocal_approximately(-huge), emulator::square_root_approximately(tiny),
              emulator::exp2_approximately(tiny));
  std::printf("nan %g %g %g\n", max(FastFloat(0), FastFloat(NAN)).v,
              min(FastFloat(NAN), FastFloat(0)).v, emulator::square_root_approximately(-1));
}

// ---- the choice --------------------------------------------------------------------------------

constexpr int kShared = kThreads * int(sizeof(int));

template <class... Arguments>
void run(void (*kernel)(Arguments...), int blocks, Arguments... arguments) {
  launch(kernel, blocks, kThreads, kShared, nullptr, arguments...);
}

const std::map<std::string, std::function<void()>> probes{
    {"reverse_numbers",
     [] {
       Numbers out(3 * kThreads);
       run(reverse_numbers, 7, out.device());
       out.print();
     }},
    {"add_warps",
     [] {
       Numbers out(kThreads / kWarp);
       run(add_warps, 1, out.device());
       out.print();
     }},
    {"turns",
     [] {
       Numbers next(1), out(3 * kThreads);
       run(set_zero, 1, next.device());
       run(turns, 3, next.device(), out.device());
       out.print();
     }},
    {"copy_numbers",
     [] {
       Numbers from(4), out(8);
       from.memory.open();
       from.memory.fill(0);
       run(copy_numbers, 1, static_cast<const int*>(from.device()), out.device());
       out.print();
     }},
    {"no_barrier",
     [] {
       Numbers out(kThreads);
       run(no_barrier, 1, out.device());
       out.print();
     }},
    {"some_at_a_barrier", [] { run(some_at_a_barrier, 1, static_cast<int*>(nullptr)); }},
    {"two_barriers", [] { run(two_barriers, 1, static_cast<int*>(nullptr)); }},
    {"some_at_a_shuffle", [] { run(some_at_a_shuffle, 1, Numbers(1).device()); }},
    {"shuffle_in_part_of_a_warp",
     [] {
       Numbers out(kThreads);
       launch(add_warps, 1, 40, 0, nullptr, out.device());
     }},
    {"write_beyond",
     [] {
       Numbers out(kThreads), other(kThreads);
       run(write_beyond, 1, out.device());
     }},
    {"write_beyond_shared", [] { run(write_beyond_shared, 1, static_cast<int*>(nullptr)); }},
    {"misaligned_words",
     [] {
       Numbers from(8), out(1);
       run(read_words, 1, static_cast<const int*>(from.device() + 1), out.device());
     }},
    {"kernel_reads_the_host",
     [] {
       const Memory host(Memory::Side::host, sizeof(double));
       run(read_number, 1, reinterpret_cast<const double*>(host.data()), Numbers(1).device());
     }},
    {"host_reads_the_device", [] { std::printf("%d\n", *Numbers(1).device()); }},
    {"no_blocks", [] { launch(set_zero, 0, kThreads, 0, nullptr, Numbers(1).device()); }},
    {"too_many_threads", [] { launch(set_zero, 1, 1025, 0, nullptr, Numbers(1).device()); }},
    {"too_much_shared_memory",
     [] {
       launch(set_zero, 1, 32, device_limits().shared_bytes + 1, nullptr, Numbers(1).device());
     }},
    {"approximations", print_approximations},
};

}  // namespace
}  // namespace robustflow

int main(int count, char** arguments) {
  if (count > 2) {
    const int order = std::atoi(arguments[2]);
    robustflow::emulator::set_order(static_cast<robustflow::emulator::Order>(order), 1);
  }
  try {
    robustflow::probes.at(arguments[1])();
  } catch (const robustflow::emulator::Error& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
