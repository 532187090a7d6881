// The autograd node of an LU layer, and the layer as Python sees it.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "gradients.h"
#include "lu.h"

namespace robustflow {
namespace {

using torch::autograd::AutogradContext;

struct LUNode : torch::autograd::Function<LUNode> {
  static variable_list forward(AutogradContext* ctx, const LULinear* layer,
                               const LUSettings& settings, at::TensorList list) {
    const LUTensors tensors(list.vec());
    variable_list results = lu::forward(tensors, settings);
    if (!tensors.diagonal.requires_grad()) ctx->mark_non_differentiable({results[1]});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(tensors.all());
    ctx->saved_data["layer"] = static_cast<int64_t>(reinterpret_cast<intptr_t>(layer));
    ctx->saved_data["inverse"] = settings.inverse;
    ctx->saved_data["eps"] = settings.eps;
    ctx->saved_data["permutation"] = settings.permutation;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const auto* layer =
        reinterpret_cast<const LULinear*>(static_cast<intptr_t>(ctx->saved_data["layer"].toInt()));
    const LUSettings settings{ctx->saved_data["inverse"].toBool(),
                              ctx->saved_data["eps"].toDouble(),
                              ctx->saved_data["permutation"].toIntVector()};
    const LUTensors tensors(ctx->get_saved_variables());
    std::vector<bool> needed(LUTensors::kCount);
    for (size_t i = 0; i < needed.size(); ++i) needed[i] = ctx->needs_input_grad(i);

    const variable_list gradients = gradients_of(
        needed.size(), cotangents,
        [&] { return lu::backward(tensors, settings, needed, cotangents); },
        [&] { return layer->differentiable_gradients(tensors, settings, needed, cotangents); });
    variable_list returned(2);  // layer, settings
    returned.insert(returned.end(), gradients.begin(), gradients.end());
    return returned;
  }
};

// Why the tensors cannot be served, as a clause; empty where they can.
std::string obstacle(const LUTensors& tensors, bool inverse) {
  if (at::impl::torch_function_mode_enabled()) return "a mode watches the call";
  if (at::autocast::is_autocast_enabled(at::kCPU)) return "autocast is on";
  const at::Tensor& x = tensors.x;
  for (const at::Tensor& t : tensors.all())
    if (!t.defined()) return "a parameter is missing";
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble)
    return "its input is neither float32 nor float64";
  for (const at::Tensor& t : tensors.all())
    if (t.scalar_type() != x.scalar_type() || !t.device().is_cpu() || t.layout() != at::kStrided ||
        at::isTensorSubclassLike(t) || t.is_neg())
      return "its input and parameters are not plain tensors of one dtype on the CPU";
  const int64_t size = tensors.diagonal.numel(), entries = size * (size - 1) / 2;
  if (tensors.diagonal.dim() != 1 || tensors.bias.sizes() != at::IntArrayRef({size}) ||
      tensors.lower.sizes() != at::IntArrayRef({entries}) ||
      tensors.upper.sizes() != at::IntArrayRef({entries}))
    return "the shapes of its parameters changed";
  if (size > lu::kMaxFeatures) return "it has too many features";
  if (x.dim() != 2 || x.size(0) == 0 || x.size(1) != size)
    return "its input is not one row for each sample";
  if (!inverse && lu::products_are_large(x.size(0), size)) return "its matrix products are large";
  return "";
}

// Reads a permutation of so many features; false where the tensor is none.
bool read_permutation(const at::Tensor& from, int64_t size, std::vector<int64_t>& to) {
  if (from.scalar_type() != at::kLong || !from.device().is_cpu() || from.layout() != at::kStrided ||
      at::isTensorSubclassLike(from) || from.sizes() != at::IntArrayRef({size}))
    return false;
  uint64_t seen = 0;
  static_assert(lu::kMaxFeatures <= 64);
  const int64_t* feature = from.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < size; ++i, feature += from.stride(0)) {
    if (*feature < 0 || *feature >= size || seen >> *feature & 1) return false;
    seen |= uint64_t{1} << *feature;
    to.push_back(*feature);
  }
  return true;
}

}  // namespace

py::object LULinear::call(const py::handle& x, const py::handle& lower, const py::handle& upper,
                          const py::handle& diagonal, const py::handle& bias, bool inverse,
                          double eps, const py::handle& permutation) const {
  variable_list all_tensors;
  all_tensors.reserve(LUTensors::kCount);
  bool differentiable = false;
  for (const py::handle& each : {x, lower, upper, diagonal, bias}) {
    if (!each.is_none() && !THPVariable_CheckExact(each.ptr()))
      return py::str("an argument is of a subclass of Tensor");
    all_tensors.push_back(to_tensor(each));
    differentiable =
        differentiable || (all_tensors.back().defined() && all_tensors.back().requires_grad());
  }
  const LUTensors tensors(all_tensors);
  if (const std::string reason = obstacle(tensors, inverse); !reason.empty())
    return py::str(reason);
  LUSettings settings{inverse, eps, {}};
  if (!permutation.is_none() &&
      !(THPVariable_CheckExact(permutation.ptr()) &&
        read_permutation(to_tensor(permutation), tensors.x.size(1), settings.permutation)))
    return py::str("its permutation is no tensor of indices on the CPU");
  variable_list results;
  {
    const py::gil_scoped_release without_gil;
    results = differentiable && at::GradMode::is_enabled()
                  ? LUNode::apply(this, settings, at::TensorList(all_tensors))
                  : lu::forward(tensors, settings);
  }
  return to_python(results);
}

variable_list LULinear::differentiable_gradients(const LUTensors& tensors,
                                                 const LUSettings& settings,
                                                 const std::vector<bool>& needed,
                                                 const variable_list& cotangents) const {
  const py::gil_scoped_acquire gil;
  return to_tensors(differentiable_(to_python(tensors.all()), settings.inverse, settings.eps,
                                    settings.permutation, needed, to_python(cotangents)));
}

void define_lu(py::module_& m) {
  py::class_<LULinear, std::unique_ptr<LULinear, py::nodelete>>(m, "LULinear")
      .def(py::init<py::function>(), py::arg("differentiable"))
      .def("__call__", &LULinear::call, py::arg("x"), py::arg("lower"), py::arg("upper"),
           py::arg("diagonal"), py::arg("bias"), py::arg("inverse"), py::arg("eps"),
           py::arg("permutation"));
}

}  // namespace robustflow
