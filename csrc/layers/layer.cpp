#include "layer.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <utility>

namespace robustflow {

using network::Kind;

namespace {

std::vector<int64_t> integers(const py::handle& list) { return list.cast<std::vector<int64_t>>(); }

Configs configs_of(const Operator& spline, const py::handle& pair) {
  Configs configs;
  for (int i = 0; i < 2; ++i) configs[i] = spline.to_config(py::cast<py::sequence>(pair)[i]);
  return configs;
}

}  // namespace

std::vector<Layer*>& Layer::all() {
  static std::vector<Layer*> layers;
  return layers;
}

Layer::Layer(const py::dict& description, const Operator& spline, py::function differentiable)
    : num_parameters_(description["num_parameters"].cast<size_t>()),
      features_(description["features"].cast<int64_t>()),
      context_features_(description["context_features"].cast<int64_t>()),
      read_(integers(description["read"])),
      changed_(integers(description["changed"])),
      num_params_(description["num_params"].cast<int64_t>()),
      spline_(spline),
      configs_(configs_of(spline, description["configs"])),
      differentiable_(std::move(differentiable)),
      number_(static_cast<int64_t>(all().size())) {
  if (!description["unconditional"].is_none())
    unconditional_ = configs_of(spline, description["unconditional"]);
  for (int64_t feature = 0; feature < features_; ++feature)
    if (std::find(changed_.begin(), changed_.end(), feature) == changed_.end())
      kept_.push_back(feature);
  std::vector<network::Node> nodes;
  for (const py::handle each : description["nodes"]) {
    const auto [first, size] = each.cast<std::pair<int, int>>();
    nodes.push_back({first, size});
  }
  std::vector<network::Step> steps;
  for (const py::handle each : description["steps"]) {
    const py::sequence step = each.cast<py::sequence>();
    steps.push_back(
        {static_cast<Kind>(step[0].cast<int>()),
         step[1].cast<int>(),
         step[2].cast<int>(),
         step[3].cast<int>(),
         step[4].cast<int>(),
         step[5].cast<int>(),
         {static_cast<network::Function>(step[6].cast<int>()), step[7].cast<double>()}});
  }
  network_ = network::Network(std::move(nodes), std::move(steps), context_features_ > 0 ? 3 : 1,
                              static_cast<int>(read_.size() + context_features_));
  if (const py::object order = description["order"]; !order.is_none()) {
    using Lists = std::vector<std::vector<int64_t>>;
    auto [units, ends] = order.cast<std::pair<Lists, Lists>>();
    order_.emplace(network_, std::move(units), std::move(ends));
  }
  all().push_back(this);
}

LayerTensors Layer::split(const variable_list& all_tensors) const {
  LayerTensors out;
  auto at = all_tensors.begin();
  out.x = *at++;
  out.context = *at++;
  out.parameters.assign(at, at + num_parameters_);
  at += num_parameters_;
  out.unconditional.assign(at, at + num_unconditional());
  at += num_unconditional();
  out.masks.assign(at, at + num_parameters_);
  return out;
}

variable_list Layer::join(const LayerTensors& tensors) const {
  variable_list out{tensors.x, tensors.context};
  for (const auto* list : {&tensors.parameters, &tensors.unconditional, &tensors.masks})
    out.insert(out.end(), list->begin(), list->end());
  return out;
}

std::string Layer::obstacle(bool inverse, bool differentiable, const LayerTensors& tensors) const {
  if (inverse && is_autoregressive()) {
    if (differentiable) return "gradients of an autoregressive inverse are wanted";
    if (!order_) return "its masks leave no order in which the features can be computed";
  }
  const at::Tensor& x = tensors.x;
  if (at::impl::torch_function_mode_enabled()) return "a mode watches the call";
  if (at::autocast::is_autocast_enabled(at::kCPU)) return "autocast is on";
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble)
    return "its input is neither float32 nor float64";
  if (differentiable &&
      (x.is_inference() || (tensors.context.defined() && tensors.context.is_inference())))
    return "its input was made in inference mode and cannot be saved for the backward pass";
  if (x.dim() != 2 || x.size(1) != features_ || x.size(0) == 0)
    return "its input is not one row for each sample";
  if (tensors.context.defined() != (context_features_ > 0))
    return "it has a context and its network none, or the other way round";
  if (context_features_ > 0 &&
      (tensors.context.dim() != 2 || tensors.context.size(0) != x.size(0) ||
       tensors.context.size(1) != context_features_))
    return "its context is not one row for each sample";
  const auto fits = [&](const at::Tensor& t) {
    return t.scalar_type() == x.scalar_type() && t.device().is_cpu() &&
           t.layout() == at::kStrided && !at::isTensorSubclassLike(t) && !t.is_neg();
  };
  bool plain = fits(x) && (!tensors.context.defined() || fits(tensors.context));
  for (const at::Tensor& t : tensors.parameters) plain = plain && t.defined() && fits(t);
  for (const at::Tensor& t : tensors.unconditional) plain = plain && t.defined() && fits(t);
  if (!plain) return "its network, input and context are not plain tensors of one dtype on the CPU";
  for (const network::Step& step : network_.steps) {
    if (step.kind != Kind::linear) continue;
    const int64_t units = network_.nodes[step.out].size, inputs = network_.nodes[step.in].size;
    if (tensors.parameters[step.weight].sizes() != at::IntArrayRef({units, inputs}) ||
        (step.bias >= 0 && tensors.parameters[step.bias].sizes() != at::IntArrayRef({units})))
      return "the shapes of its weights changed";
  }
  return "";
}

variable_list Layer::differentiable_gradients(bool inverse, const LayerTensors& tensors,
                                              const std::vector<bool>& needed,
                                              const variable_list& cotangents) const {
  const py::gil_scoped_acquire gil;
  return to_tensors(
      differentiable_(inverse, to_python(join(tensors)), needed, to_python(cotangents)));
}

}  // namespace robustflow
