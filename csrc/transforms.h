// The list of transforms. To add one, write its header (csrc/math/transform.h describes the
// interface), include it and list it here, and write a file like csrc/cuda/affine.cu.
// docs/adding-a-transform.md has all the steps.
#pragma once

#include "math/affine.h"
#include "math/cubic_bspline.h"
#include "math/modified_rq.h"
#include "math/rq_spline.h"
#include "problem.h"

// ENTRY(name of the operator, the struct that describes it: csrc/math/transform.h)
#define ROBUSTFLOW_TRANSFORMS(ENTRY)      \
  ENTRY(modified_rq, ModifiedRqTransform) \
  ENTRY(rq, RqTransform)                  \
  ENTRY(affine, AffineTransform)          \
  ENTRY(cubic_bspline, CubicBsplineTransform)

namespace robustflow {

#define ROBUSTFLOW_ENTRY(name, Description) name,
enum class Transform : int { ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY) };
#undef ROBUSTFLOW_ENTRY

#define ROBUSTFLOW_ENTRY(name, Description) +1
inline constexpr int kNumTransforms = 0 ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY);
#undef ROBUSTFLOW_ENTRY

}  // namespace robustflow
