// From an element's number to its offset in each tensor of a call.
#pragma once

#include "../problem.h"
#include "cuda/device.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Division of numbers below 2^31 by a constant, as a multiplication (Granlund and Montgomery 1994).
struct Divisor {
  std::uint32_t value = 1, multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(std::int64_t n) : value(static_cast<std::uint32_t>(n)) {
    while ((std::uint64_t(1) << shift) < value) ++shift;
    const std::uint64_t power = std::uint64_t(1) << shift;
    multiplier = static_cast<std::uint32_t>((((power - value) << 32) / value) + 1);
  }
  ROBUSTFLOW_DEVICE std::uint32_t quotient(std::uint32_t n) const {
    const auto high = static_cast<std::uint32_t>((std::uint64_t(n) * multiplier) >> 32);
    return (high + n) >> shift;
  }
};

// The dimensions over which elements are numbered, as in a contiguous tensor: the last one varies
// fastest.
struct Space {
  int dims = 1;
  Divisor size[kMaxDims];
};

// A tensor over a space, with a stride of 0 where it is broadcast.
struct View {
  char* data = nullptr;  // null: an input of zeros, or an output that is not needed
  DType dtype = DType::float32;
  int num_parameters = 1;
  std::int64_t stride[kMaxDims] = {};
  std::int64_t parameter_stride = 0;
};

template <class S, class Offset>
ROBUSTFLOW_DEVICE S* at(const View& view, Offset offset) {
  return reinterpret_cast<S*>(view.data) + offset;
}

// Calls each(index, dimension) for every dimension, with the indices of element number e.
template <class F>
ROBUSTFLOW_DEVICE void for_coordinates(const Space& space, std::uint32_t e, F&& each) {
#pragma unroll 1
  for (int d = space.dims - 1; d > 0; --d) {
    const std::uint32_t q = space.size[d].quotient(e);
    each(e - q * space.size[d].value, d);
    e = q;
  }
  each(e, 0);
}

ROBUSTFLOW_DEVICE std::int64_t offset_of(const Space& space, const View& view, std::uint32_t e) {
  std::int64_t offset = 0;
  for_coordinates(space, e, [&](std::uint32_t i, int d) { offset += view.stride[d] * i; });
  return offset;
}

// The offsets of element e in all tensors of a call, in 32 bits. fits_32_bits() must hold for each.
template <int INPUTS, int OUTPUTS>
struct Offsets {
  std::uint32_t in[INPUTS] = {}, out[OUTPUTS] = {};

  ROBUSTFLOW_DEVICE Offsets(const Space& space, const View (&inputs)[INPUTS],
                            const View (&outputs)[OUTPUTS], std::uint32_t e) {
    for_coordinates(space, e, [&](std::uint32_t i, int d) {
#pragma unroll
      for (int v = 0; v < INPUTS; ++v) in[v] += static_cast<std::uint32_t>(inputs[v].stride[d]) * i;
#pragma unroll
      for (int v = 0; v < OUTPUTS; ++v) {
        out[v] += static_cast<std::uint32_t>(outputs[v].stride[d]) * i;
      }
    });
  }
};

// Calls work(S()) with the C++ type S of the dtype. In a float32 computation, no tensor is float64.
template <class T, class F>
ROBUSTFLOW_DEVICE void with_storage(DType dtype, F&& work) {
  switch (dtype) {
    case DType::float64:
      if constexpr (sizeof(T) == 8) work(double());
      break;
    case DType::float32:
      work(float());
      break;
    case DType::bfloat16:
      work(bfloat16());
      break;
    case DType::float16:
      work(float16());
      break;
  }
}

template <class V>
ROBUSTFLOW_DEVICE V load_element(const View& view, std::int64_t offset) {
  V out(0);
  if (!view.data) return out;
  with_storage<scalar_t<V>>(
      view.dtype, [&](auto type) { out = V(widen(*at<const decltype(type)>(view, offset))); });
  return out;
}
template <class V>
ROBUSTFLOW_DEVICE void store_element(const View& view, std::int64_t offset, V value) {
  if (!view.data) return;
  with_storage<scalar_t<V>>(
      view.dtype, [&](auto type) { narrow(value_of(value), *at<decltype(type)>(view, offset)); });
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
