// The kernels of csrc/cuda with their run-time options set to those of the workloads that
// catalogue.py names, so that the compiler drops the branches that those do not take and what it
// leaves can be counted. Only ever disassembled.
#include "cuda/device.h"
#include "cuda/staged.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// An Op whose calls go to Settings::of(op).
template <class Op, class Settings>
struct Pinned : Op {
  template <bool inverse, class Parameter, class Workspace>
  ROBUSTFLOW_DEVICE auto transform(typename Op::Lane x, const Parameter& parameter,
                                   Workspace workspace) const {
    return Settings::of(*this).template transform<inverse>(x, parameter, workspace);
  }
  template <class Parameter>
  ROBUSTFLOW_DEVICE auto log_slope(const Parameter& parameter, typename Op::Lane slope) const {
    return Settings::of(*this).log_slope(parameter, slope);
  }
  template <bool inverse, class Parameter, class Workspace, class Put>
  ROBUSTFLOW_DEVICE auto gradient(typename Op::Lane x, const Parameter& parameter,
                                  Workspace workspace, typename Op::Lane gy, typename Op::Lane gl,
                                  Put&& put) const {
    return Settings::of(*this).template gradient<inverse>(x, parameter, workspace, gy, gl, put);
  }
};

struct Exponential {  // the modified spline's derivative, as published
  static ROBUSTFLOW_DEVICE auto of(ModifiedRqOp<Single> op) {
    op.math.softclip = false;
    return op;
  }
};
struct ScaleSigmoid {  // sigmoid(a + 2) + eps, shift first: SRFlow's
  static ROBUSTFLOW_DEVICE auto of(AffineOp<Single> op) {
    op.math.scale = Scale::sigmoid;
    op.math.shift_first = true;
    op.math.reciprocal = false;
    return op;
  }
};
struct LinearTails {  // 8 bins, softmax, linear tails, one box for all: nflows'
  static constexpr int kBins = 8;
  static ROBUSTFLOW_DEVICE auto of(RqOp<Single, kBins> op) {
    op.math.parametrization = Parametrization::softmax;
    op.math.tails = Tails::linear;
    op.num_derivatives = kBins - 1;
    op.box_in_row = false;
    return op;
  }
};

using PinnedModifiedRq = Pinned<ModifiedRqOp<Single>, Exponential>;
using PinnedAffine = Pinned<AffineOp<Single>, ScaleSigmoid>;
using PinnedRq = Pinned<RqOp<Single, LinearTails::kBins>, LinearTails>;

#define PLANES(Op, S, inverse)                                  \
  template __global__ void planes_transform<Op, S, S, inverse>( \
      ROBUSTFLOW_PARAMETER PlanesTransform<Op>);                \
  template __global__ void planes_gradient<Op, S, S, inverse>(  \
      ROBUSTFLOW_PARAMETER PlanesGradient<Op>);
PLANES(PinnedModifiedRq, float, false)
PLANES(PinnedModifiedRq, float, true)
PLANES(PinnedModifiedRq, bfloat16, false)
PLANES(PinnedModifiedRq, bfloat16, true)
PLANES(PinnedAffine, float, false)
PLANES(PinnedAffine, float, true)
PLANES(PinnedAffine, bfloat16, false)
PLANES(PinnedAffine, bfloat16, true)

#define STAGED(inverse, gradient)                               \
  template __global__ void staged<PinnedRq, inverse, gradient>( \
      ROBUSTFLOW_PARAMETER Staged<PinnedRq>);
STAGED(false, false)
STAGED(true, false)
STAGED(false, true)
STAGED(true, true)

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
