// The autograd node of a fused layer, and the layer as Python sees it.
#include <torch/csrc/autograd/custom_function.h>

#include "gradients.h"
#include "layer.h"

namespace robustflow {
namespace {

using torch::autograd::AutogradContext;

// Autograd sees only the tensors that are given; `given` says which of all those are.
struct LayerNode : torch::autograd::Function<LayerNode> {
  static variable_list of(const Layer& layer, bool inverse, const LayerTensors& tensors) {
    const variable_list every = layer.join(tensors);
    variable_list given;
    std::vector<int64_t> places;
    for (size_t i = 0; i < every.size(); ++i) {
      if (!every[i].defined()) continue;
      given.push_back(every[i]);
      places.push_back(static_cast<int64_t>(i));
    }
    return apply(layer, inverse, static_cast<int64_t>(every.size()), places, at::TensorList(given));
  }

  static variable_list forward(AutogradContext* ctx, const Layer& layer, bool inverse,
                               int64_t count, const std::vector<int64_t>& places,
                               at::TensorList given) {
    variable_list every(count), saved;
    for (size_t i = 0; i < places.size(); ++i) every[places[i]] = given[i];
    variable_list results = layer.forward(inverse, layer.split(every), &saved);
    every.insert(every.end(), saved.begin(), saved.end());
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(std::move(every));
    ctx->saved_data["layer"] = layer.number();
    ctx->saved_data["inverse"] = inverse;
    ctx->saved_data["places"] = places;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const Layer& layer = Layer::numbered(ctx->saved_data["layer"].toInt());
    const bool inverse = ctx->saved_data["inverse"].toBool();
    const std::vector<int64_t> places = ctx->saved_data["places"].toIntVector();
    variable_list every = ctx->get_saved_variables();
    const variable_list saved(every.begin() + layer.num_tensors(), every.end());
    every.resize(layer.num_tensors());
    std::vector<bool> needed(layer.num_gradients(), false);
    for (size_t i = 0; i < places.size(); ++i)
      if (places[i] < static_cast<int64_t>(needed.size()))
        needed[places[i]] = ctx->needs_input_grad(i);

    const LayerTensors given = layer.split(every);
    variable_list found = gradients_of(
        needed.size(), cotangents,
        [&] { return layer.backward(inverse, given, saved, needed, cotangents); },
        [&] { return layer.differentiable_gradients(inverse, given, needed, cotangents); });
    variable_list returned(4);  // layer, inverse, count, places
    found.resize(layer.num_tensors());
    for (const int64_t place : places) returned.push_back(found[place]);
    return returned;
  }
};

}  // namespace

py::object Layer::call(bool inverse, const py::sequence& tensors) const {
  variable_list every;
  every.reserve(tensors.size());
  bool differentiable = false;
  for (const py::handle each : tensors) {
    if (!each.is_none() && !THPVariable_CheckExact(each.ptr()))
      return py::str("a tensor is of a subclass");
    every.push_back(to_tensor(each));
    differentiable = differentiable || (every.back().defined() && every.back().requires_grad());
  }
  differentiable = differentiable && at::GradMode::is_enabled();
  const LayerTensors given = split(every);
  if (const std::string reason = obstacle(inverse, differentiable, given); !reason.empty())
    return py::str(reason);
  variable_list results;
  {
    const py::gil_scoped_release others_may_run;
    if (differentiable) {
      results = LayerNode::of(*this, inverse, given);
    } else if (inverse && is_autoregressive()) {
      results = invert(given);
    } else {
      results = forward(inverse, given, nullptr);
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
