// Copies between rows, (N, D), and blocks of samples, [block][column][sample].
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace robustflow {

// A matrix of any strides.
template <class T>
struct Rows {
  T* data;
  int64_t row_stride, column_stride;

  explicit Rows(const at::Tensor& t)
      : data(t.data_ptr<std::remove_const_t<T>>()),
        row_stride(t.stride(0)),
        column_stride(t.stride(1)) {}

  T* column(int64_t index) const { return data + index * column_stride; }
};

// All columns of a matrix, in order.
inline std::vector<int64_t> all_columns(int64_t count) {
  std::vector<int64_t> columns(count);
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

// Samples [first, first + count) of a block whose columns are `stride` apart.
struct SampleRange {
  int64_t first, count, stride;

  SampleRange(int64_t block, int64_t stride_, int64_t samples)
      : first(std::min(block * stride_, samples)),
        count(std::clamp<int64_t>(samples - block * stride_, 0, stride_)),
        stride(stride_) {}
};

// Some columns of a matrix; the samples that fill the block up are 0.
template <class T>
void gather(const Rows<const T>& from, const std::vector<int64_t>& columns,
            const SampleRange& samples, T* to) {
  for (const int64_t column : columns) {
    const T* at = from.column(column) + samples.first * from.row_stride;
    for (int64_t i = 0; i < samples.count; ++i) to[i] = at[i * from.row_stride];
    std::fill(to + samples.count, to + samples.stride, T(0));
    to += samples.stride;
  }
}

// The other way; added to what is there where `adds`.
template <class T>
void scatter(const T* from, int64_t column_stride, const std::vector<int64_t>& columns,
             const SampleRange& samples, bool adds, const Rows<T>& to) {
  for (const int64_t column : columns) {
    T* at = to.column(column) + samples.first * to.row_stride;
    if (adds) {
      for (int64_t i = 0; i < samples.count; ++i) at[i * to.row_stride] += from[i];
    } else {
      for (int64_t i = 0; i < samples.count; ++i) at[i * to.row_stride] = from[i];
    }
    from += column_stride;
  }
}

}  // namespace robustflow
