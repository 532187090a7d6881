// A linear layer whose matrix is a product of triangular ones, y = L (U P x) + b, and its inverse;
// with a backward pass of its own. P permutes the features, or is left out.
//
// robustflow/fused/lu.py says what the parameters are; nflows calls such a layer LULinear.
#pragma once

#include <string>
#include <vector>

#include "../operator.h"

namespace robustflow {

// What autograd knows of a call, in the order of its gradients.
struct LUTensors {
  at::Tensor x;             // (N, D)
  at::Tensor lower, upper;  // (D (D - 1) / 2,): the rows of each triangle, without the diagonal
  at::Tensor diagonal;      // (D,): of U, before softplus
  at::Tensor bias;          // (D,)

  static constexpr size_t kCount = 5;
  explicit LUTensors(const variable_list& tensors)
      : x(tensors[0]),
        lower(tensors[1]),
        upper(tensors[2]),
        diagonal(tensors[3]),
        bias(tensors[4]) {}
  variable_list all() const { return {x, lower, upper, diagonal, bias}; }
};

struct LUSettings {
  bool inverse;
  double eps;                        // added to the diagonal of U
  std::vector<int64_t> permutation;  // feature i of P x is feature permutation[i] of x
};

namespace lu {

constexpr int64_t kMaxFeatures = 64;
// Whether the two matrix products of PyTorch's library, which has no such solver, are as fast.
inline bool products_are_large(int64_t samples, int64_t features) {
  return features > 8 && samples * features * features > 1 << 20;
}

// (y, logabsdet)
variable_list forward(const LUTensors& tensors, const LUSettings& settings);

// Those of the gradients, in the order of LUTensors, that `needed` asks for and that the cotangents
// reach.
variable_list backward(const LUTensors& tensors, const LUSettings& settings,
                       const std::vector<bool>& needed, const variable_list& cotangents);

}  // namespace lu

// The layer as Python sees it. Lives as long as the process, since a graph may refer to it.
class LULinear {
 public:
  // `differentiable(tensors, inverse, eps, permutation, needed, cotangents)` gives gradients that can
  // be differentiated again.
  explicit LULinear(py::function differentiable) : differentiable_(std::move(differentiable)) {}

  // (y, logabsdet); or a str, a clause that says why it cannot serve this call.
  py::object call(const py::handle& x, const py::handle& lower, const py::handle& upper,
                  const py::handle& diagonal, const py::handle& bias, bool inverse, double eps,
                  const py::handle& permutation) const;

  variable_list differentiable_gradients(const LUTensors& tensors, const LUSettings& settings,
                                         const std::vector<bool>& needed,
                                         const variable_list& cotangents) const;

 private:
  const py::function differentiable_;
};

void define_lu(py::module_& m);

}  // namespace robustflow
