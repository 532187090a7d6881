// An operator and its backward operator, called from C++.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <utility>
#include <vector>

namespace robustflow {

namespace py = pybind11;
using c10::IValue;
using torch::autograd::variable_list;
using Stack = std::vector<IValue>;

inline IValue optional_tensor(const at::Tensor& t) { return t.defined() ? IValue(t) : IValue(); }

inline void append(Stack& stack, const variable_list& tensors) {
  for (const at::Tensor& t : tensors) stack.push_back(optional_tensor(t));
}

inline at::Tensor to_tensor(py::handle value) {
  if (value.is_none()) return {};
  if (!THPVariable_Check(value.ptr()))
    throw py::type_error("robustflow: an operator's tensor is a " +
                         std::string(py::str(py::type::of(value))) + ".");
  return THPVariable_Unpack(value.ptr());
}

inline variable_list to_tensors(const py::object& values) {
  variable_list tensors;
  for (const py::handle value : values) tensors.push_back(to_tensor(value));
  return tensors;
}

inline py::object to_python(const at::Tensor& t) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(t));  // None where undefined
}

inline py::tuple to_python(const variable_list& tensors) {
  py::tuple wrapped(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) wrapped[i] = to_python(tensors[i]);
  return wrapped;
}

// An operator, its backward operator, and a Python function for second derivatives. Lives as long
// as the process.
class Operator {
 public:
  // The first `num_tensors` arguments are tensors, and the first `num_gradients` of these have
  // gradients. `reference_gradients(tensors, config, needed, cotangents)` returns gradients that
  // can be differentiated again. `python_function` handles calls with a subclass of Tensor or
  // within a TorchFunctionMode.
  Operator(const std::string& forward, const std::string& backward, size_t num_tensors,
           size_t num_gradients, py::function reference_gradients, py::function python_function)
      : forward_(find(forward)),
        backward_(find(backward)),
        num_tensors_(num_tensors),
        num_gradients_(num_gradients),
        reference_gradients_(std::move(reference_gradients)),
        python_function_(std::move(python_function)),
        number_(all().size()) {
    const auto& arguments = forward_.schema().arguments();
    for (size_t i = num_tensors; i < arguments.size(); ++i)
      config_.push_back(
          {arguments[i].name(), arguments[i].type()->str(), arguments[i].type()->kind()});
    all().push_back(this);
  }

  static Operator& numbered(int64_t number) { return *all()[number]; }

  py::object call_from_python(const py::args& arguments) const;

  variable_list call(const variable_list& tensors, const Stack& config) const {
    Stack stack;
    stack.reserve(tensors.size() + config.size());
    append(stack, tensors);
    stack.insert(stack.end(), config.begin(), config.end());
    run(forward_, stack);
    return {std::move(stack[0]).toTensor(), std::move(stack[1]).toTensor()};
  }

  // Bit i of `needed` asks for the gradient of tensor i; the other gradients are undefined.
  variable_list gradients(const variable_list& tensors, const Stack& config, int64_t needed,
                          const variable_list& cotangents) const {
    if (at::GradMode::is_enabled())  // create_graph=True: this gradient is differentiated again
      return differentiable_gradients(tensors, config, needed, cotangents);
    Stack stack;
    stack.reserve(cotangents.size() + tensors.size() + config.size() + 1);
    append(stack, cotangents);
    append(stack, tensors);
    stack.insert(stack.end(), config.begin(), config.end());
    stack.emplace_back(needed);
    run(backward_, stack);
    variable_list grads(num_gradients_);
    for (size_t i = 0; i < num_gradients_; ++i)
      if (needed >> i & 1) grads[i] = std::move(stack[i]).toTensor();
    return grads;
  }

  // The operator's arguments after the tensors, from a Python sequence.
  Stack to_config(const py::sequence& numbers, size_t first = 0) const {
    Stack config;
    config.reserve(config_.size());
    for (size_t i = 0; i < config_.size(); ++i)
      config.push_back(to_number(numbers[first + i], config_[i]));
    return config;
  }

  size_t num_tensors() const { return num_tensors_; }
  size_t config_size() const { return config_.size(); }
  size_t num_gradients() const { return num_gradients_; }
  int64_t number() const { return number_; }

 private:
  static std::vector<Operator*>& all() {
    static std::vector<Operator*> operators;
    return operators;
  }

  static c10::OperatorHandle find(const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
  }

  static void run(const c10::OperatorHandle& operation, Stack& stack) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operation.callBoxed(stack);
  }

  variable_list differentiable_gradients(const variable_list& tensors, const Stack& config,
                                         int64_t needed, const variable_list& cotangents) const {
    py::gil_scoped_acquire gil;
    py::tuple numbers(config.size());
    for (size_t i = 0; i < config.size(); ++i) numbers[i] = number_to_python(config[i]);
    py::list needed_list;
    for (size_t i = 0; i < num_gradients_; ++i) needed_list.append(py::bool_(needed >> i & 1));
    return to_tensors(
        reference_gradients_(to_python(tensors), numbers, needed_list, to_python(cotangents)));
  }

  static py::object number_to_python(const IValue& number) {
    if (number.isBool()) return py::bool_(number.toBool());
    if (number.isInt()) return py::int_(number.toInt());
    return py::float_(number.toDouble());
  }

  struct Number {
    std::string name, type;
    c10::TypeKind kind;
  };

  static IValue to_number(py::handle value, const Number& number) {
    try {
      switch (number.kind) {
        case c10::TypeKind::BoolType:
          return value.cast<bool>();
        case c10::TypeKind::IntType:
          return value.cast<int64_t>();
        default:
          return value.cast<double>();
      }
    } catch (const py::cast_error&) {
      throw py::type_error("robustflow: " + number.name + " must be a " + number.type + ", got " +
                           std::string(py::repr(value)) + ".");
    }
  }

  bool is_overridden_in_python(const py::args& arguments) const {
    if (at::impl::torch_function_mode_enabled()) return true;
    for (size_t i = 0; i < num_tensors_; ++i) {
      const py::handle value = arguments[i];
      if (THPVariable_Check(value.ptr()) && !THPVariable_CheckExact(value.ptr())) return true;
    }
    return false;
  }

  const c10::OperatorHandle forward_, backward_;
  const size_t num_tensors_, num_gradients_;
  const py::function reference_gradients_, python_function_;
  const int64_t number_;  // in all()
  std::vector<Number> config_;
};

}  // namespace robustflow
