// A fused coupling or autoregressive layer: the features that its network reads, the network, the
// K-bin spline of the others, and the log-determinant; with a backward pass of its own.
//
// robustflow/fused says which layers it serves and describes them.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "../network/network.h"
#include "../operator.h"

namespace robustflow {

// The K-bin spline's configuration in both directions.
using Configs = std::array<Stack, 2>;

// The tensors of a call, in the order in which Python passes them and autograd returns gradients.
struct LayerTensors {
  at::Tensor x, context;        // (N, D); (N, C), or undefined
  variable_list parameters;     // of the network
  variable_list unconditional;  // widths, heights, derivatives of the spline of the kept features
  variable_list masks;  // of the parameters: undefined where there is none, never a gradient
};

// A layer's description. Lives as long as the process, since a graph may refer to it.
class Layer {
 public:
  Layer(const py::dict& description, const Operator& spline, py::function differentiable);

  // (y, logabsdet); or a str, a clause that says why it cannot serve this call.
  py::object call(bool inverse, const py::sequence& arguments) const;

  variable_list forward(bool inverse, const LayerTensors& tensors, variable_list* saved) const;

  // The inverse of an autoregressive layer, feature after feature, without a backward pass.
  variable_list invert(const LayerTensors& tensors) const;

  // Gradients in the order of LayerTensors without the masks; `needed` asks for each.
  variable_list backward(bool inverse, const LayerTensors& tensors, const variable_list& saved,
                         const std::vector<bool>& needed, const variable_list& cotangents) const;

  // The same from operations that autograd, vmap and subclasses know.
  variable_list differentiable_gradients(bool inverse, const LayerTensors& tensors,
                                         const std::vector<bool>& needed,
                                         const variable_list& cotangents) const;

  LayerTensors split(const variable_list& all_tensors) const;
  variable_list join(const LayerTensors& tensors) const;
  // Tensors that have gradients, and all.
  size_t num_gradients() const { return 2 + num_parameters_ + num_unconditional(); }
  size_t num_tensors() const { return num_gradients() + num_parameters_; }
  int64_t number() const { return number_; }
  static const Layer& numbered(int64_t number) { return *all()[number]; }

 private:
  static std::vector<Layer*>& all();

  size_t num_unconditional() const { return unconditional_ ? 3 : 0; }
  // Whether the network reads what the layer changes.
  bool is_autoregressive() const { return kept_.empty(); }
  std::string obstacle(bool inverse, bool differentiable, const LayerTensors& tensors) const;

  template <class T>
  variable_list forward_typed(bool inverse, const LayerTensors& tensors,
                              variable_list* saved) const;
  template <class T>
  variable_list invert_typed(const LayerTensors& tensors) const;
  template <class T>
  variable_list backward_typed(bool inverse, const LayerTensors& tensors,
                               const variable_list& saved, const std::vector<bool>& needed,
                               const variable_list& cotangents) const;

  network::Network network_;
  std::optional<network::Order> order_;  // of the inverse of an autoregressive layer
  size_t num_parameters_;
  int64_t features_, context_features_;
  std::vector<int64_t> read_, changed_, kept_;  // features; the last are those that do not change
  int64_t num_params_;                          // of the spline of a feature
  const Operator& spline_;
  Configs configs_;
  // Of the spline of the kept features, whose parameters are the layer's and not its network's.
  std::optional<Configs> unconditional_;
  py::function differentiable_;
  int64_t number_;  // in all()
};

void define_layer(py::module_& m);

}  // namespace robustflow
