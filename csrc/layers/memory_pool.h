// Memory of large tensors that live from a forward to a backward pass, for the next step to use.
//
// Otherwise glibc returns it to the system after a step, and the page faults of the next one cost up to
// a quarter of that step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

namespace robustflow {

// What the pool holds while nobody uses it.
inline constexpr std::size_t kMaxPooledBytes = std::size_t{256} << 20;

// Smaller tensors are left to the allocator. This is the size from which glibc, by default, maps new
// pages for every block.
inline constexpr std::size_t kMinPooledBytes = std::size_t{1} << 17;

// An uninitialised, contiguous CPU tensor. Its memory goes back to the pool when it is freed.
at::Tensor empty_from_pool(at::IntArrayRef sizes, const at::TensorOptions& options);

// Frees what the pool holds; returns the bytes.
std::size_t empty_pool();

}  // namespace robustflow
