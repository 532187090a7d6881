// robustflow._autograd: in C++, eager calls of the native operators with their gradients, the fused
// layers, and the pool of their memory.
//
// Its Operator is a faster `_python_function` (robustflow/ops/registry.py). For an input of 200 x 5 with ten
// bins, a call and its gradient take 39 us instead of 55, and a call without gradients 10.3 us
// instead of 13.3 (benchmarks/results/README.md names the machine). It needs more of torch than the
// stable ABI has. So it is a library of its own, which robustflow/_native.py loads only into the
// exact PyTorch that it was built against.
#include <stdexcept>
#include <string>
#include <utility>

#include "layers/layer.h"
#include "layers/lu.h"
#include "layers/memory_pool.h"
#include "network/kernels.h"
#include "operator.h"

namespace robustflow {
namespace {

using torch::autograd::AutogradContext;

// Undefined tensors are not passed to autograd. Bit i of `present` says that tensor i is defined.
struct OperatorNode : torch::autograd::Function<OperatorNode> {
  static constexpr bool is_traceable = true;  // all state of the backward pass is in ctx

  static variable_list of(const Operator& operation, const variable_list& tensors,
                          const Stack& config) {
    variable_list defined;
    int64_t present = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].defined()) continue;
      present |= int64_t{1} << i;
      defined.push_back(tensors[i]);
    }
    return apply(operation, present, config, at::TensorList(defined));
  }

  static variable_list forward(AutogradContext* ctx, const Operator& operation, int64_t present,
                               const Stack& config, at::TensorList defined) {
    variable_list tensors = restore_undefined(operation, present, defined.vec());
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(tensors);
    Stack saved = config;
    saved.insert(saved.end(), {operation.number(), present});
    ctx->saved_data[kSavedKey] = c10::ivalue::Tuple::create(std::move(saved));
    return operation.call(tensors, config);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    Stack config = ctx->saved_data[kSavedKey].toTupleRef().elements().vec();
    const int64_t present = take_last(config);
    const Operator& operation = Operator::numbered(take_last(config));
    int64_t needed = 0;
    size_t edge = 0;
    for (size_t i = 0; i < operation.num_gradients(); ++i)
      if (present >> i & 1) needed |= static_cast<int64_t>(ctx->needs_input_grad(edge++)) << i;
    const variable_list grads =
        operation.gradients(ctx->get_saved_variables(), config, needed, cotangents);
    variable_list returned(3);  // operation, present, config
    for (size_t i = 0; i < operation.num_tensors(); ++i)
      if (present >> i & 1) returned.push_back(i < grads.size() ? grads[i] : at::Tensor());
    return returned;
  }

 private:
  static constexpr const char* kSavedKey = "config, operator, present";

  static int64_t take_last(Stack& stack) {
    const int64_t last = stack.back().toInt();
    stack.pop_back();
    return last;
  }

  static variable_list restore_undefined(const Operator& operation, int64_t present,
                                         variable_list defined) {
    variable_list tensors(operation.num_tensors());
    auto next = defined.begin();
    for (size_t i = 0; i < tensors.size(); ++i)
      if (present >> i & 1) tensors[i] = std::move(*next++);
    return tensors;
  }
};

// Whether any argument is a dual tensor of forward-mode AD. Arguments may be None.
bool any_dual(const py::args& tensors) {
  for (const py::handle value : tensors)
    if (THPVariable_Check(value.ptr()) && THPVariable_Unpack(value.ptr())._fw_grad(0).defined())
      return true;
  return false;
}

}  // namespace

py::object Operator::call_from_python(const py::args& arguments) const {
  if (arguments.size() != num_tensors_ + config_.size())
    throw py::type_error("robustflow: an operator takes " +
                         std::to_string(num_tensors_ + config_.size()) + " arguments, got " +
                         std::to_string(arguments.size()) + ".");
  if (is_overridden_in_python(arguments)) return python_function_(*arguments);
  variable_list tensors;
  tensors.reserve(num_tensors_);
  bool differentiable = false;
  for (size_t i = 0; i < num_tensors_; ++i) {
    tensors.push_back(to_tensor(arguments[i]));
    differentiable = differentiable ||
                     (i < num_gradients_ && tensors[i].defined() && tensors[i].requires_grad());
  }
  const Stack config = to_config(arguments, num_tensors_);

  variable_list results;
  {
    const py::gil_scoped_release without_gil;
    results = differentiable && at::GradMode::is_enabled()
                  ? OperatorNode::of(*this, tensors, config)
                  : call(tensors, config);
  }
  return to_python(results);
}

}  // namespace robustflow

PYBIND11_MODULE(_autograd, m) {
  namespace py = pybind11;
  using robustflow::Operator;
  m.doc() = "Eager calls of the native operators with gradients, and fused layers, in C++.";
  m.def("any_dual", &robustflow::any_dual);
  py::class_<Operator, std::unique_ptr<Operator, py::nodelete>>(m, "Operator")
      .def(py::init<const std::string&, const std::string&, size_t, size_t, py::function,
                    py::function>(),
           py::arg("forward"), py::arg("backward"), py::arg("num_tensors"),
           py::arg("num_gradients"), py::arg("reference_gradients"), py::arg("python_function"))
      .def("__call__", &Operator::call_from_python);
  robustflow::define_layer(m);
  robustflow::define_lu(m);
  m.def("empty_pool", &robustflow::empty_pool);
  m.def("set_isa", &robustflow::network::set_isa, py::arg("name"));
}
