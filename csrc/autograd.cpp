// robustflow._autograd: eager calls of the native operators, with gradients, in C++.
//
// It does in C++ what `_python_way` of robustflow/ops/registry.py does for any operator. A call of
// 200 x 5 with ten bins and its gradient take 39 us in place of 55, a call without gradients 10.3
// in place of 13.3 (benchmarks/results/README.md says on which machine). It needs more of torch
// than the stable ABI, so it is a library of its own, and robustflow/_native.py loads it only into
// the exact PyTorch that it was built against.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace robustflow {
namespace {

using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Stack = std::vector<IValue>;

IValue optional_tensor(const at::Tensor& t) { return t.defined() ? IValue(t) : IValue(); }

void append(Stack& stack, const variable_list& tensors) {
  for (const at::Tensor& t : tensors) stack.push_back(optional_tensor(t));
}

// An operator, its backward operator, and the source of gradients of gradients. Lives as long as
// the process.
class Operator {
 public:
  // `num_tensors` tensors come first among the arguments, of which the first `num_gradients` have
  // gradients. `reference_gradients(tensors, config, needed, cotangents)` gives differentiable ones.
  // `python_way` takes the calls that Python may override: subclasses of Tensor, function modes.
  Operator(const std::string& forward, const std::string& backward, size_t num_tensors,
           size_t num_gradients, py::function reference_gradients, py::function python_way)
      : forward_(find(forward)),
        backward_(find(backward)),
        num_tensors_(num_tensors),
        num_gradients_(num_gradients),
        reference_gradients_(std::move(reference_gradients)),
        python_way_(std::move(python_way)),
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

  // Of the tensors that `needed` asks for; the others are undefined.
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
    variable_list found(num_gradients_);
    for (size_t i = 0; i < num_gradients_; ++i)
      if (needed >> i & 1) found[i] = std::move(stack[i]).toTensor();
    return found;
  }

  size_t num_tensors() const { return num_tensors_; }
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
    for (size_t i = 0; i < config.size(); ++i) numbers[i] = to_python(config[i]);
    py::list wanted;
    for (size_t i = 0; i < num_gradients_; ++i) wanted.append(py::bool_(needed >> i & 1));
    const py::object made =
        reference_gradients_(to_python(tensors), numbers, wanted, to_python(cotangents));
    variable_list found;
    for (py::handle gradient : made) found.push_back(to_tensor(gradient));
    return found;
  }

  static at::Tensor to_tensor(py::handle value) {
    if (value.is_none()) return {};
    if (!THPVariable_Check(value.ptr()))
      throw py::type_error("robustflow: an operator's tensor is a " +
                           std::string(py::str(py::type::of(value))) + ".");
    return THPVariable_Unpack(value.ptr());
  }

  static py::object to_python(const at::Tensor& t) {
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(t));  // None where undefined
  }

  static py::tuple to_python(const variable_list& tensors) {
    py::tuple wrapped(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) wrapped[i] = to_python(tensors[i]);
    return wrapped;
  }

  static py::object to_python(const IValue& number) {
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

  bool python_has_a_say(const py::args& arguments) const {
    if (at::impl::torch_function_mode_enabled()) return true;
    for (size_t i = 0; i < num_tensors_; ++i) {
      const py::handle value = arguments[i];
      if (THPVariable_Check(value.ptr()) && !THPVariable_CheckExact(value.ptr())) return true;
    }
    return false;
  }

  const c10::OperatorHandle forward_, backward_;
  const size_t num_tensors_, num_gradients_;
  const py::function reference_gradients_, python_way_;
  const int64_t number_;  // in all()
  std::vector<Number> config_;
};

// Autograd sees only the tensors that are given; `present` says which arguments those are.
struct Node : torch::autograd::Function<Node> {
  static constexpr bool is_traceable = true;  // all that the backward pass reads is in ctx

  static variable_list of(const Operator& operation, const variable_list& tensors,
                          const Stack& config) {
    variable_list given;
    int64_t present = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].defined()) continue;
      present |= int64_t{1} << i;
      given.push_back(tensors[i]);
    }
    return apply(operation, present, config, at::TensorList(given));
  }

  static variable_list forward(AutogradContext* ctx, const Operator& operation, int64_t present,
                               const Stack& config, at::TensorList given) {
    variable_list tensors = spread(operation, present, given.vec());
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(tensors);
    Stack kept = config;
    kept.insert(kept.end(), {operation.number(), present});
    ctx->saved_data[kKept] = c10::ivalue::Tuple::create(std::move(kept));
    return operation.call(tensors, config);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    Stack config = ctx->saved_data[kKept].toTupleRef().elements().vec();
    const int64_t present = take_last(config);
    const Operator& operation = Operator::numbered(take_last(config));
    int64_t needed = 0;
    size_t edge = 0;
    for (size_t i = 0; i < operation.num_gradients(); ++i)
      if (present >> i & 1) needed |= static_cast<int64_t>(ctx->needs_input_grad(edge++)) << i;
    const variable_list found =
        operation.gradients(ctx->get_saved_variables(), config, needed, cotangents);
    variable_list returned(3);  // operation, present, config
    for (size_t i = 0; i < operation.num_tensors(); ++i)
      if (present >> i & 1) returned.push_back(i < found.size() ? found[i] : at::Tensor());
    return returned;
  }

 private:
  static constexpr const char* kKept = "config, operator, present";

  static int64_t take_last(Stack& stack) {
    const int64_t last = stack.back().toInt();
    stack.pop_back();
    return last;
  }

  static variable_list spread(const Operator& operation, int64_t present, variable_list given) {
    variable_list tensors(operation.num_tensors());
    auto next = given.begin();
    for (size_t i = 0; i < tensors.size(); ++i)
      if (present >> i & 1) tensors[i] = std::move(*next++);
    return tensors;
  }
};

py::object Operator::call_from_python(const py::args& arguments) const {
  if (arguments.size() != num_tensors_ + config_.size())
    throw py::type_error("robustflow: an operator got " + std::to_string(arguments.size()) +
                         " arguments where it has " +
                         std::to_string(num_tensors_ + config_.size()) + ".");
  if (python_has_a_say(arguments)) return python_way_(*arguments);
  variable_list tensors;
  tensors.reserve(num_tensors_);
  bool differentiable = false;
  for (size_t i = 0; i < num_tensors_; ++i) {
    tensors.push_back(to_tensor(arguments[i]));
    differentiable = differentiable ||
                     (i < num_gradients_ && tensors[i].defined() && tensors[i].requires_grad());
  }
  Stack config;
  config.reserve(config_.size());
  for (size_t i = 0; i < config_.size(); ++i)
    config.push_back(to_number(arguments[num_tensors_ + i], config_[i]));

  variable_list results;
  {
    py::gil_scoped_release others_may_run;
    results = differentiable && at::GradMode::is_enabled() ? Node::of(*this, tensors, config)
                                                           : call(tensors, config);
  }
  return to_python(results);
}

// Whether any of some tensors, or None, is a dual number of forward mode.
bool any_dual(const py::args& tensors) {
  for (const py::handle value : tensors)
    if (THPVariable_Check(value.ptr()) && THPVariable_Unpack(value.ptr())._fw_grad(0).defined())
      return true;
  return false;
}

}  // namespace
}  // namespace robustflow

PYBIND11_MODULE(_autograd, m) {
  using robustflow::Operator;
  m.doc() = "Eager calls of the native operators, with gradients; for robustflow/ops/registry.py.";
  m.def("any_dual", &robustflow::any_dual);
  py::class_<Operator, std::unique_ptr<Operator, py::nodelete>>(m, "Operator")
      .def(py::init<const std::string&, const std::string&, size_t, size_t, py::function,
                    py::function>(),
           py::arg("forward"), py::arg("backward"), py::arg("num_tensors"),
           py::arg("num_gradients"), py::arg("reference_gradients"), py::arg("python_way"))
      .def("__call__", &Operator::call_from_python);
}
