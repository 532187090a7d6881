// Where an operand's elements lie in memory, in the order of computation (csrc/order.h).
#pragma once

#include <algorithm>

#include "../order.h"
#include "kernels.h"
#include "tuning.h"

namespace robustflow::cpu {

template <class T>
inline constexpr DType dtype_of = sizeof(T) == 8 ? DType::float64 : DType::float32;

// An operand with its dimensions in that order. Neighbouring dimensions are merged if the strides
// allow.
struct View {
  char* data = nullptr;
  DType dtype = DType::float32;
  int num_planes = 0;
  Index plane_stride = 0;
  int dims = 0;
  Index size[kMaxDims], stride[kMaxDims];

  View() = default;
  View(const Operand& operand, const Order& order)
      : View(operand.data, operand.dtype, operand.num_parameters, operand.parameter_stride, order,
             [&](int i) { return operand.stride[order.dim[i]]; }) {}

  template <class StrideAt>
  View(void* data_, DType dtype_, int num_planes_, Index plane_stride_, const Order& order,
       const StrideAt& stride_at)
      : data(static_cast<char*>(data_)),
        dtype(dtype_),
        num_planes(num_planes_),
        plane_stride(plane_stride_) {
    for (int i = 0; i < order.dims; ++i) {
      const Index s = stride_at(i);
      if (dims > 0 && stride[dims - 1] == s * order.size[i]) {
        size[dims - 1] *= order.size[i];
        stride[dims - 1] = s;
      } else {
        size[dims] = order.size[i];
        stride[dims++] = s;
      }
    }
    if (dims == 0) {
      size[0] = 1;
      stride[0] = 0;
      dims = 1;
    }
  }

  Index run() const { return size[dims - 1]; }  // elements along the innermost dimension
  bool constant() const { return dims == 1 && stride[0] == 0; }
  // The number of elements after which a view repeats; 0: never, or after more than kLongestPeriod.
  Index period() const {
    if (constant()) return 1;
    return dims == 2 && stride[0] == 0 && run() <= kLongestPeriod ? run() : 0;
  }

  // Calls f(offset, done, length) for each run within [start, start + count): the elements
  // [start + done, start + done + length) begin at `offset` in memory, one stride apart.
  template <class F>
  void for_runs(Index start, Index count, const F& f) const {
    Index index[kMaxDims];
    for (int d = dims - 1; d > 0; --d) {
      index[d] = start % size[d];
      start /= size[d];
    }
    index[0] = start;
    const int last = dims - 1;
    for (Index done = 0; done < count;) {
      Index offset = 0;
      for (int d = 0; d < dims; ++d) offset += index[d] * stride[d];
      const Index length = std::min(count - done, size[last] - index[last]);
      f(offset, done, length);
      done += length;
      index[last] += length;
      for (int d = last; d > 0 && index[d] == size[d]; --d) {
        index[d] = 0;
        ++index[d - 1];
      }
    }
  }

  // Copies one plane element by element, for views with short runs.
  template <class T>
  void gather(Index start, Index count, T* to) const {
    const Index length = size[1], step = stride[1];
    const T* from = reinterpret_cast<const T*>(data) + start / length * stride[0];
    for (Index at = start % length, i = 0; i < count; ++i) {
      to[i] = from[at * step];
      if (++at == length) {
        at = 0;
        from += stride[0];
      }
    }
  }
  template <class T>
  bool gathers() const {
    return dims == 2 && num_planes == 1 && run() < kShortRun && dtype == dtype_of<T>;
  }

  Strided strided(Index offset) const {
    return {data + offset * size_of(dtype), dtype, stride[dims - 1], plane_stride, num_planes};
  }
};

}  // namespace robustflow::cpu
