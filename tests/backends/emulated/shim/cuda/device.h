// csrc/cuda/device.h for a host: the same names with the same meaning, on the emulator's threads
// and memory. Kernels find this one where the search path begins with tests/backends/emulated/shim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "approximate.h"
#include "emulator.h"
#include "math/half.h"
#include "math/lane.h"

// The formulas are compiled as they come: inlining them all, which is what makes kernels fast, takes
// the sanitizer's compiler a minute a kernel.
#undef ROBUSTFLOW_FN
#undef ROBUSTFLOW_INLINE
#define ROBUSTFLOW_FN inline
#define ROBUSTFLOW_INLINE

#define ROBUSTFLOW_KERNEL(threads, blocks) void
#define ROBUSTFLOW_PARAMETER const
#define ROBUSTFLOW_DEVICE inline

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// ---- arithmetic --------------------------------------------------------------------------------

inline float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
using emulator::exp2_approximately;
using emulator::max_nan;
using emulator::min_nan;
using emulator::reciprocal_approximately;
using emulator::square_root_approximately;

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow

#include "cuda/fast_float.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// ---- storage -----------------------------------------------------------------------------------

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(float16 v) { return widen_portably(v); }
inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(double v, float& out) { out = static_cast<float>(v); }
inline void narrow(float v, bfloat16& out) { out = narrow_portably(v, out); }
inline void narrow(float v, float16& out) { out = narrow_portably(v, out); }
template <class Half>
inline void narrow(double v, Half& out) {
  narrow(static_cast<float>(v), out);
}

template <class Half>
inline std::uint32_t narrow_pair(float first, float second, Half type) {
  return narrow_portably(first, type).bits |
         static_cast<std::uint32_t>(narrow_portably(second, type).bits) << 16;
}

struct alignas(16) Words {
  std::uint32_t word[4];
};
inline void check_alignment(const void* p, const char* what, const emulator::Place& place) {
  if (reinterpret_cast<std::uintptr_t>(p) % sizeof(Words)) {
    emulator::fail(std::string(what) + " 16 bytes at an address that is no multiple of 16.", place);
  }
}
inline Words load_words(const void* p, const emulator::Place& place = emulator::Place::current()) {
  check_alignment(p, "Loads", place);
  return *static_cast<const Words*>(p);
}
inline void store_words(void* p, Words w,
                        const emulator::Place& place = emulator::Place::current()) {
  check_alignment(p, "Stores", place);
  *static_cast<Words*>(p) = w;
}

inline void copy_async(void* shared, const void* global,
                       const emulator::Place& place = emulator::Place::current()) {
  check_alignment(shared, "Copies", place);
  check_alignment(global, "Copies", place);
  emulator::copy_later(shared, global, sizeof(Words), place);
}
inline void wait_for_copies() { emulator::finish_copies(); }

// ---- threads -----------------------------------------------------------------------------------

inline constexpr int kWarp = emulator::kWarp;

inline int thread_index() { return emulator::position.thread; }
inline int block_threads() { return emulator::position.threads; }
inline std::uint32_t block_index() { return emulator::position.block; }
inline std::uint32_t grid_blocks() { return emulator::position.blocks; }

inline void barrier(const emulator::Place& place = emulator::Place::current()) {
  emulator::wait_at_barrier(place);
}
template <class T>
T shuffle_xor(T v, int mask, const emulator::Place& place = emulator::Place::current()) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "what __shfl_xor_sync takes");
  T out;
  emulator::exchange(&v, &out, sizeof v, mask, place);
  return out;
}
template <class T>
T* shared_memory() {
  static_assert(alignof(T) <= 16);
  return static_cast<T*>(emulator::position.shared);
}

// ---- launches ----------------------------------------------------------------------------------

// There are no streams here: a launch has run when launch() returns.
using Stream = void*;

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;
  int multiprocessor_shared_bytes;
};
inline DeviceLimits device_limits() {
  return {emulator::kMultiprocessors, emulator::kSharedBytes, emulator::kMultiprocessorSharedBytes};
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes,
            Stream, const Arguments&... arguments) {
  const auto body = [&] { kernel(arguments...); };
  emulator::run_grid(
      reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes,
      [](void* context) { (*static_cast<decltype(body)*>(context))(); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
