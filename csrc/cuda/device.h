// The device: everything of a GPU that is not C++, and nothing else. PTX, intrinsics, barriers,
// shuffles, shared memory, launches.
//
// Kernels reach the hardware through this header alone, so that the tests can run their sources on
// a host (tests/backends/emulated puts a header of the same name before this one).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../math/half.h"
#include "../math/lane.h"

// A kernel for at most `threads` a block, compiled so that `blocks` of them fit a multiprocessor.
#define ROBUSTFLOW_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// A kernel's parameter, read in place from constant memory.
#define ROBUSTFLOW_PARAMETER __grid_constant__ const

#define ROBUSTFLOW_DEVICE __device__ __forceinline__

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// ---- arithmetic --------------------------------------------------------------------------------

ROBUSTFLOW_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
// The larger and the smaller of two; NaN where one is.
ROBUSTFLOW_DEVICE float max_nan(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
ROBUSTFLOW_DEVICE float min_nan(float a, float b) {
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
// 1/v and the square root within 1 ulp, 2^v within 2; subnormal numbers count as zero.
ROBUSTFLOW_DEVICE float reciprocal_approximately(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
ROBUSTFLOW_DEVICE float exp2_approximately(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
ROBUSTFLOW_DEVICE float square_root_approximately(float v) {
  float out;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow

#include "cuda/fast_float.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// ---- storage -----------------------------------------------------------------------------------

ROBUSTFLOW_FN float widen(float v) { return v; }
ROBUSTFLOW_FN double widen(double v) { return v; }
ROBUSTFLOW_DEVICE float widen(float16 v) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
}
ROBUSTFLOW_FN void narrow(float v, float& out) { out = v; }
ROBUSTFLOW_FN void narrow(double v, double& out) { out = v; }
ROBUSTFLOW_FN void narrow(double v, float& out) { out = static_cast<float>(v); }
ROBUSTFLOW_DEVICE void narrow(float v, bfloat16& out) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
}
ROBUSTFLOW_DEVICE void narrow(float v, float16& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
}
template <class Half>
ROBUSTFLOW_DEVICE void narrow(double v, Half& out) {
  narrow(static_cast<float>(v), out);
}

// Two numbers in the halves of a word, the first in the lower one.
ROBUSTFLOW_DEVICE std::uint32_t narrow_pair(float first, float second, bfloat16) {
  std::uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
}
ROBUSTFLOW_DEVICE std::uint32_t narrow_pair(float first, float second, float16) {
  std::uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
}

// 16 bytes of global memory in one access: of inputs, which no kernel writes and none reads twice,
// and of outputs.
struct alignas(16) Words {
  std::uint32_t word[4];
};
ROBUSTFLOW_DEVICE Words load_words(const void* p) {
  Words w;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
      : "l"(p));
  return w;
}
ROBUSTFLOW_DEVICE void store_words(void* p, Words w) {
  *static_cast<uint4*>(p) = make_uint4(w.word[0], w.word[1], w.word[2], w.word[3]);
}

// Asynchronous copy of 16 bytes from global to shared memory; wait_for_copies() waits for this
// thread's.
ROBUSTFLOW_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
ROBUSTFLOW_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- threads -----------------------------------------------------------------------------------

inline constexpr int kWarp = 32;

ROBUSTFLOW_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
ROBUSTFLOW_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
ROBUSTFLOW_DEVICE std::uint32_t block_index() { return blockIdx.x; }
ROBUSTFLOW_DEVICE std::uint32_t grid_blocks() { return gridDim.x; }

// All threads of the block wait here, and see what the others wrote.
ROBUSTFLOW_DEVICE void barrier() { __syncthreads(); }
// The value of the thread of this warp whose index differs in the bits of `mask`. All take part.
template <class T>
ROBUSTFLOW_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
// The block's shared memory, as many bytes as its launch asked for; aligned to 16.
template <class T>
ROBUSTFLOW_DEVICE T* shared_memory() {
  extern __shared__ Words robustflow_shared[];
  return reinterpret_cast<T*>(robustflow_shared);
}

// ---- launches ----------------------------------------------------------------------------------

using Stream = cudaStream_t;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("robustflow: ") + what +
                           " failed: " + cudaGetErrorString(status) + ".");
}

// What a launch may use of the current device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;                 // of a block
  int multiprocessor_shared_bytes;  // of all blocks on it
};
inline DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  DeviceLimits limits;
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  get(limits.multiprocessors, cudaDevAttrMultiProcessorCount);
  get(limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(limits.multiprocessor_shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return limits;
}

// Launches a kernel on at most `blocks` blocks, and no more than can be resident at once: kernels
// walk over their work in steps of the grid.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes,
            Stream stream, const Arguments&... arguments) {
  constexpr int kDefaultSharedBytes = 48 * 1024;  // what a block gets without asking
  if (shared_bytes > kDefaultSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "cudaFuncSetAttribute");
  }
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads,
                                                      shared_bytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const std::int64_t resident = std::int64_t(per_multiprocessor < 1 ? 1 : per_multiprocessor) *
                                device_limits().multiprocessors;
  const unsigned grid = static_cast<unsigned>(blocks < resident ? blocks : resident);
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), "a kernel launch");
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
