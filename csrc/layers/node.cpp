// The autograd node of a fused layer, and the layer as Python sees it.
#include <torch/csrc/autograd/custom_function.h>

#include "gradients.h"
#include "layer.h"

namespace robustflow {
namespace {

using torch::autograd::AutogradContext;

// Autograd sees only the defined tensors; `indices` are their indices among all tensors.
struct LayerNode : torch::autograd::Function<LayerNode> {
  static variable_list of(const Layer& layer, bool inverse, const LayerTensors& tensors) {
    const variable_list all_tensors = layer.join(tensors);
    variable_list defined;
    std::vector<int64_t> indices;
    for (size_t i = 0; i < all_tensors.size(); ++i) {
      if (!all_tensors[i].defined()) continue;
      defined.push_back(all_tensors[i]);
      indices.push_back(static_cast<int64_t>(i));
    }
    return apply(layer, inverse, static_cast<int64_t>(all_tensors.size()), indices,
                 at::TensorList(defined));
  }

  static variable_list forward(AutogradContext* ctx, const Layer& layer, bool inverse,
                               int64_t count, const std::vector<int64_t>& indices,
                               at::TensorList defined) {
    variable_list all_tensors(count), saved;
    for (size_t i = 0; i < indices.size(); ++i) all_tensors[indices[i]] = defined[i];
    variable_list results = layer.forward(inverse, layer.split(all_tensors), &saved);
    all_tensors.insert(all_tensors.end(), saved.begin(), saved.end());
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(std::move(all_tensors));
    ctx->saved_data["layer"] = layer.number();
    ctx->saved_data["inverse"] = inverse;
    ctx->saved_data["indices"] = indices;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const Layer& layer = Layer::numbered(ctx->saved_data["layer"].toInt());
    const bool inverse = ctx->saved_data["inverse"].toBool();
    const std::vector<int64_t> indices = ctx->saved_data["indices"].toIntVector();
    variable_list all_tensors = ctx->get_saved_variables();
    const variable_list saved(all_tensors.begin() + layer.num_tensors(), all_tensors.end());
    all_tensors.resize(layer.num_tensors());
    std::vector<bool> needed(layer.num_gradients(), false);
    for (size_t i = 0; i < indices.size(); ++i)
      if (indices[i] < static_cast<int64_t>(needed.size()))
        needed[indices[i]] = ctx->needs_input_grad(i);

    const LayerTensors tensors = layer.split(all_tensors);
    variable_list gradients = gradients_of(
        needed.size(), cotangents,
        [&] { return layer.backward(inverse, tensors, saved, needed, cotangents); },
        [&] { return layer.differentiable_gradients(inverse, tensors, needed, cotangents); });
    variable_list returned(4);  // layer, inverse, count, indices
    gradients.resize(layer.num_tensors());
    for (const int64_t index : indices) returned.push_back(gradients[index]);
    return returned;
  }
};

}  // namespace

py::object Layer::call(bool inverse, const py::sequence& arguments) const {
  variable_list all_tensors;
  all_tensors.reserve(arguments.size());
  bool differentiable = false;
  for (const py::handle each : arguments) {
    if (!each.is_none() && !THPVariable_CheckExact(each.ptr()))
      return py::str("an argument is of a subclass of Tensor");
    all_tensors.push_back(to_tensor(each));
    differentiable =
        differentiable || (all_tensors.back().defined() && all_tensors.back().requires_grad());
  }
  differentiable = differentiable && at::GradMode::is_enabled();
  const LayerTensors tensors = split(all_tensors);
  if (const std::string reason = obstacle(inverse, differentiable, tensors); !reason.empty())
    return py::str(reason);
  variable_list results;
  {
    const py::gil_scoped_release without_gil;
    if (differentiable) {
      results = LayerNode::of(*this, inverse, tensors);
    } else if (inverse && is_autoregressive()) {
      results = invert(tensors);
    } else {
      results = forward(inverse, tensors, nullptr);
    }
  }
  return to_python(results);
}

void define_layer(py::module_& m) {
  py::class_<Layer, std::unique_ptr<Layer, py::nodelete>>(m, "Layer")
      .def(py::init<const py::dict&, const Operator&, py::function>(), py::arg("description"),
           py::arg("spline"), py::arg("differentiable"), py::keep_alive<1, 3>())
      .def("__call__", &Layer::call, py::arg("inverse"), py::arg("tensors"));
}

}  // namespace robustflow
