// Tensors of a layer over blocks of samples, and what its two passes share.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "../parallel.h"
#include "columns.h"
#include "layer.h"

namespace robustflow {

// The tensors of an operator that are left out are undefined.
inline variable_list arguments_of(const Operator& operation, variable_list tensors) {
  tensors.resize(operation.num_tensors());
  return tensors;
}

inline at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor out = at::empty(sizes, options);
  std::memset(out.data_ptr(), 0, out.nbytes());
  return out;
}

// (block, sample, feature) over memory [block][feature][sample].
inline at::Tensor by_sample(const at::Tensor& t) { return t.transpose(1, 2); }

// (block, sample, feature, parameter) over memory [block][feature, parameter][sample].
inline at::Tensor parameters_by_sample(const at::Tensor& t, int64_t num_params) {
  const int64_t stride = t.size(2);
  return t.as_strided({t.size(0), stride, t.size(1) / num_params, num_params},
                      {t.stride(0), 1, num_params * stride, stride});
}

// The planes of a tensor in which the samples of a block are adjacent, as its operator makes them.
inline at::Tensor with_adjacent_samples(const at::Tensor& t) {
  if (t.stride(1) == 1) return t;
  std::vector<int64_t> sizes = t.sizes().vec(), strides(sizes.size());
  int64_t step = 1;
  strides[1] = step;
  step *= sizes[1];
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    if (d == 1) continue;
    strides[d] = step;
    step *= sizes[d];
  }
  at::Tensor copy = at::empty_strided(sizes, strides, t.options());
  copy.copy_(t);
  return copy;
}

template <class F>
void for_blocks(int64_t count, const F& f) {
  if (count == 1) return f(0);
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// out = numbers * mask, for a mask of zeros and ones; `out` may be `numbers`. Booleans are converted
// one by one, without a tensor of numbers between.
template <class T>
void apply_mask(const at::Tensor& numbers, const at::Tensor& mask, const at::Tensor& out) {
  const T* from = numbers.const_data_ptr<T>();
  T* to = out.data_ptr<T>();
  const int64_t count = numbers.numel();
  const auto multiply = [&](const auto* by) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] * static_cast<T>(by[i]);
  };
  const at::Tensor contiguous = mask.expand(numbers.sizes()).contiguous();
  if (mask.scalar_type() == at::kBool) {
    multiply(static_cast<const uint8_t*>(contiguous.const_data_ptr()));
  } else {
    multiply(contiguous.to(out.scalar_type()).const_data_ptr<T>());
  }
}

// The weights and biases of a network where its loops read them: contiguous, masks applied.
template <class T>
struct MaskedParameters {
  std::vector<const T*> data;
  variable_list keep;

  MaskedParameters(const variable_list& parameters, const variable_list& masks) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      keep.push_back(parameters[i].contiguous());
      if (masks[i].defined()) {
        const at::Tensor masked = at::empty(parameters[i].sizes(), parameters[i].options());
        apply_mask<T>(keep.back(), masks[i], masked);
        keep.back() = masked;
      }
      data.push_back(keep.back().const_data_ptr<T>());
    }
  }
};

// Sums over features, of one tensor or two, (block, sample, feature), for the first samples.
template <class T>
void sum_over_features(const at::Tensor& logs, const at::Tensor& others, const at::Tensor& sums) {
  const int64_t samples = sums.size(0), stride = logs.size(1);
  T* to = sums.data_ptr<T>();
  for (int64_t first = 0; first < samples; first += stride, to += stride) {
    const int64_t count = std::min(stride, samples - first);
    std::fill_n(to, count, T(0));
    for (const at::Tensor* each : {&logs, &others}) {
      if (!each->defined()) continue;
      const T* from = each->const_data_ptr<T>() + first / stride * each->stride(0);
      for (int64_t d = 0; d < each->size(2); ++d, from += each->stride(2))
        for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
  }
}

template <class T>
struct Scratch {
  at::Tensor memory;
  T* data;

  Scratch(int64_t size, const at::Tensor& like)
      : memory(at::empty({size}, like.options())), data(memory.data_ptr<T>()) {}
};

}  // namespace robustflow
