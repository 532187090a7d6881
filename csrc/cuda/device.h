// All CUDA that the kernels use: PTX, intrinsics, barriers, shuffles, shared memory, launches.
//
// The rest of csrc/cuda is plain C++ on top of it. So the tests can compile and run the kernels on
// a CPU, with another header in place of this one (tests/backends/emulated/shim).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../math/half.h"
#include "../math/lane.h"

// A kernel with at most `threads` threads per block. The compiler limits registers so that `blocks`
// blocks fit on a multiprocessor.
#define ROBUSTFLOW_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// For a kernel's parameter: it is read from constant memory and not copied.
#define ROBUSTFLOW_PARAMETER __grid_constant__ const

#define ROBUSTFLOW_DEVICE __device__ __forceinline__

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// ---- arithmetic --------------------------------------------------------------------------------

ROBUSTFLOW_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
// NaN if either argument is NaN.
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
// Errors: 1 ulp for 1/v and the square root, 2 ulp for 2^v. Subnormal numbers count as zero.
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

// Two 16-bit floats in one word, the first in the lower half.
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

// 16 bytes of global memory in one access. Loads go past the L1 cache: inputs are read only once.
// No kernel may write the memory that load_words() reads.
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

// Starts to copy 16 bytes from global to shared memory; wait_for_copies() waits for all copies that
// this thread has started.
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

// Waits until all threads of the block are here. Each then sees what the others wrote.
ROBUSTFLOW_DEVICE void barrier() { __syncthreads(); }
// The v of the thread in this warp whose index is this thread's index ^ mask. All threads of the
// warp must call it.
template <class T>
ROBUSTFLOW_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
// The block's dynamic shared memory, aligned to 16 bytes; launch() sets its size.
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

// Limits of the current device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;                 // maximum per block
  int multiprocessor_shared_bytes;  // for all blocks on a multiprocessor
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

// Launches a kernel with `blocks` blocks, but no more than can be resident at once: the kernels are
// grid-stride loops.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes,
            Stream stream, const Arguments&... arguments) {
  constexpr int kDefaultSharedBytes = 48 * 1024;  // a launch with more needs the attribute
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
