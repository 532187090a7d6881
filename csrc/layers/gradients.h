// What the backward passes of fused layers share.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>

#include <cstdint>

#include "../operator.h"

namespace robustflow {

// How many parts' sums of parameters' gradients are formed side by side, before they are added in
// order: the same on any number of threads.
inline constexpr int64_t kMaxGradientParts = 8;

// The `count` gradients. Undefined ones without a cotangent; differentiable() where they are
// differentiated again, or where a cotangent is not plain memory, as under vmap; else direct().
template <class Direct, class Differentiable>
variable_list gradients_of(size_t count, const variable_list& cotangents, const Direct& direct,
                           const Differentiable& differentiable) {
  bool plain = !at::GradMode::is_enabled(), any = false;
  for (const at::Tensor& t : cotangents) {
    if (!t.defined()) continue;
    any = true;
    plain = plain && !at::isTensorSubclassLike(t);
  }
  if (!any) return variable_list(count);
  return plain ? direct() : differentiable();
}

}  // namespace robustflow
