// The operators that robustflow/ops defines, for any device. They check the arguments and allocate
// the outputs; the device's driver does the rest. Of torch, this file and the two that register the
// operators (ops_cpu.cpp, ops_cuda.cpp) use only the stable ABI.
//
// The interface of a Device:
//
//   explicit Device(const Tensor& x);  // makes the device of x current for its own lifetime
//   bool owns(const Tensor& t) const;  // whether t is on this device
//   void run_transform(const Problem& problem, int batch_dims, void* logabsdet);
//   void run_gradient(const Problem& problem);
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "transforms.h"

namespace robustflow {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, "robustflow: tensors must be float64, float32, bfloat16 or float16.");
  }
}

// On the device of `like`.
Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& sizes,
                     const std::vector<int64_t>& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return strides;
}

std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

// A tensor without gaps, with the dimensions of t in the same order in memory.
Tensor dense_like(const Tensor& t) {
  if (!t.is_contiguous()) return torch::stable::empty_like(t);
  const std::vector<int64_t> sizes = sizes_of(t);
  return empty_strided(t, sizes, contiguous_strides(sizes), t.scalar_type());
}

// For an output that is not needed.
Tensor placeholder(const Tensor& like) { return empty_strided(like, {0}, {1}, like.scalar_type()); }

// Builds a problem from tensors in canonical form (robustflow/ops/__init__.py) and runs it.
template <class Device>
class Call {
 public:
  Call(Transform transform, bool inverse, const Tensor& x) : device_(x) {
    problem_.transform = transform;
    problem_.inverse = inverse;
    problem_.dims = static_cast<int>(x.dim());
    STD_TORCH_CHECK(x.dim() <= kMaxDims, "robustflow: at most ", kMaxDims, " dimensions, got ",
                    x.dim(), ": flatten some.");
    for (int d = 0; d < problem_.dims; ++d) problem_.size[d] = x.size(d);
    problem_.use_float64 = false;
    input(x, 0);
  }

  // A tensor with the leading dimensions of x, or none.
  void input(const MaybeTensor& t) {
    if (t) return input(*t, 0);
    problem_.in[problem_.num_inputs++].num_parameters = 1;
  }
  // A tensor of parameters: its last dimension has the size `num_parameters`.
  void parameters(const Tensor& t, int64_t num_parameters) {
    STD_TORCH_CHECK(t.dim() == problem_.dims + 1 && t.size(t.dim() - 1) == num_parameters,
                    "robustflow: parameters must have x's dimensions and a last one of ",
                    num_parameters, ".");
    input(t, num_parameters);
  }
  // Numbers that are the same for every element. `values` must stay valid until the run has ended.
  void constants(const double* values, int count) {
    Operand& operand = problem_.in[problem_.num_inputs++];
    operand.data = const_cast<double*>(values);
    operand.dtype = DType::float64;
    operand.num_parameters = count;
    operand.parameter_stride = 1;
    operand.on_host = true;
  }
  // Parameters that are in the tensor of the earlier operand `input` (or `output`).
  void part_of_input(int first_parameter, int num_parameters, int input) {
    part(problem_.in[problem_.num_inputs++], first_parameter, num_parameters, input);
  }
  void part_of_output(int first_parameter, int num_parameters, int output) {
    part(problem_.out[problem_.num_outputs++], first_parameter, num_parameters, output);
  }

  Tensor output_like(const Tensor& t, bool needed = true) {
    const int num_parameters = t.dim() > problem_.dims ? static_cast<int>(t.size(t.dim() - 1)) : 0;
    if (needed) {
      Tensor out = dense_like(t);
      if (empty()) torch::stable::zero_(out);
      describe(out, num_parameters, problem_.out[problem_.num_outputs++]);
      return out;
    }
    describe(t, num_parameters, problem_.out[problem_.num_outputs]);
    problem_.out[problem_.num_outputs++].data = nullptr;
    return placeholder(t);
  }

  bool empty() const {
    for (int d = 0; d < problem_.dims; ++d)
      if (problem_.size[d] == 0) return true;
    return false;
  }

  // Allocates y and the log-determinant, and runs the transform.
  template <class Config>
  std::tuple<Tensor, Tensor> transform(const Tensor& x, int64_t batch_dims, const Config& config) {
    STD_TORCH_CHECK(batch_dims >= 0 && batch_dims <= problem_.dims,
                    "robustflow: batch_dims must lie between 0 and x's dimensions.");
    Tensor y = output_like(x);
    const ScalarType dtype = problem_.use_float64 ? ScalarType::Double : ScalarType::Float;
    std::vector<int64_t> sizes = sizes_of(x);
    Tensor logabsdet;
    if (batch_dims == problem_.dims) {
      const auto strides = y.strides();
      logabsdet = empty_strided(x, sizes, {strides.begin(), strides.end()}, dtype);
      describe(logabsdet, 0, problem_.out[problem_.num_outputs++]);
    } else {
      sizes.resize(batch_dims);
      logabsdet = empty_strided(x, sizes, contiguous_strides(sizes), dtype);
      problem_.out[problem_.num_outputs++].num_parameters = 1;
    }
    if (empty()) torch::stable::zero_(logabsdet);
    configure(config);
    device_.run_transform(problem_, static_cast<int>(batch_dims), logabsdet.mutable_data_ptr());
    return {std::move(y), std::move(logabsdet)};
  }

  template <class Config>
  void gradient(const Config& config) {
    configure(config);
    device_.run_gradient(problem_);
  }

 private:
  template <class Config>
  void configure(const Config& config) {
    problem_.config = &config;
    problem_.config_bytes = sizeof config;
  }

  void input(const Tensor& t, int64_t num_parameters) {
    STD_TORCH_CHECK(device_.owns(t), "robustflow: all tensors of a call must be on one device.");
    Operand& operand = problem_.in[problem_.num_inputs++];
    describe(t, static_cast<int>(num_parameters), operand);
    problem_.use_float64 = problem_.use_float64 || operand.dtype == DType::float64;
  }

  void describe(const Tensor& t, int num_parameters, Operand& operand) const {
    const auto sizes = t.sizes(), strides = t.strides();
    const int dims = static_cast<int>(sizes.size()) - (num_parameters > 0);
    operand.data = t.data_ptr();
    operand.dtype = dtype_of(t);
    operand.num_parameters = num_parameters > 0 ? num_parameters : 1;
    operand.parameter_stride = num_parameters > 0 ? strides[dims] : 0;
    STD_TORCH_CHECK(dims <= problem_.dims, "robustflow: a tensor has more dimensions than x.");
    for (int d = 0; d < dims; ++d) {
      STD_TORCH_CHECK(sizes[d] == problem_.size[d] || sizes[d] == 1, "robustflow: dimension ", d,
                      " is ", sizes[d], " where x has ", problem_.size[d], " (1 would be shared).");
      operand.stride[d] = sizes[d] == 1 ? 0 : strides[d];
    }
  }

  static void part(Operand& operand, int first_parameter, int num_parameters, int of) {
    operand.part_of = of;
    operand.first_parameter = first_parameter;
    operand.num_parameters = num_parameters;
  }

  Device device_;
  Problem problem_;
};

bool is_needed(int64_t needed, int gradient) { return needed >> gradient & 1; }

// An operator and its backward operator. `Numbers` are the types of the arguments that
// Description::settings takes after x's dtype. `Others` counts the optional tensors after x and the
// first group of parameters.
template <class Device, Transform TRANSFORM, class Description, class Numbers, class Others>
struct Operator;

template <std::size_t>
using Other = const MaybeTensor&;

template <class Device, Transform TRANSFORM, class Description, class... Numbers,
          std::size_t... OTHERS>
struct Operator<Device, TRANSFORM, Description,
                Settings<typename Description::Config> (*)(DType, Numbers...),
                std::index_sequence<OTHERS...>> {
  using Config = typename Description::Config;
  static constexpr int kGroups = Description::kGroups;

  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& first,
                                            Other<OTHERS>... others, Numbers... numbers,
                                            int64_t batch_dims) {
    const Settings<Config> settings = checked(Description::settings(dtype_of(x), numbers...));
    Call<Device> call(TRANSFORM, settings.inverse, x);
    add_parameters(call, settings, {&first, pointer(others)...});
    return call.transform(x, batch_dims, settings.config);
  }

  static auto backward(const MaybeTensor& grad_y, const MaybeTensor& grad_logabsdet,
                       const Tensor& x, const Tensor& first, Other<OTHERS>... others,
                       Numbers... numbers, int64_t, int64_t needed) {
    const Settings<Config> settings = checked(Description::settings(dtype_of(x), numbers...));
    const Tensors tensors{&first, pointer(others)...};
    Call<Device> call(TRANSFORM, settings.inverse, x);
    add_parameters(call, settings, tensors);
    call.input(grad_y);
    call.input(grad_logabsdet);
    std::optional<Tensor> gradients[1 + kGroups];
    gradients[0] = call.output_like(x, is_needed(needed, 0));
    int first_parameter = 0;
    for (int g = 0; g < kGroups; ++g) {
      const int num_parameters = settings.num_parameters[g];
      const bool gradient_needed = is_needed(needed, 1 + g);
      if (g > 0 && is_packed(tensors)) {
        gradients[1 + g] = placeholder(x);
        call.part_of_output(first_parameter, num_parameters, 1);
      } else if (num_parameters == 0) {
        gradients[1 + g] = gradient_needed ? dense_like(*tensors.group[g]) : placeholder(x);
        call.part_of_output(0, 0, 1);
      } else {
        gradients[1 + g] = call.output_like(*tensors.group[g], gradient_needed);
      }
      first_parameter += num_parameters;
    }
    call.gradient(settings.config);
    return to_tuple(gradients, std::make_index_sequence<1 + kGroups>());
  }

 private:
  // The groups of parameters, then the constants; null where the caller passed none.
  struct Tensors {
    const Tensor* group[1 + sizeof...(OTHERS)];
  };
  static const Tensor* pointer(const MaybeTensor& t) { return t ? &*t : nullptr; }

  // Whether the first group's tensor has the parameters of all groups.
  static bool is_packed(const Tensors& tensors) {
    const auto* end = tensors.group + kGroups;
    return std::find(tensors.group, end, nullptr) != end;
  }

  static void add_parameters(Call<Device>& call, const Settings<Config>& settings,
                             const Tensors& tensors) {
    const bool packed = is_packed(tensors);
    const int* num_parameters = settings.num_parameters;
    call.parameters(
        *tensors.group[0],
        packed ? std::accumulate(num_parameters, num_parameters + kGroups, 0) : num_parameters[0]);
    int first_parameter = 0;
    for (int g = 1; g < kGroups; ++g) {
      first_parameter += num_parameters[g - 1];
      if (packed) {
        call.part_of_input(first_parameter, num_parameters[g], 1);
      } else if (num_parameters[g] == 0) {
        call.part_of_input(0, 0, 1);
      } else {
        call.parameters(*tensors.group[g], num_parameters[g]);
      }
    }
    if constexpr (Description::kConstants > 0) {
      if (const Tensor* constants = tensors.group[kGroups]) {
        call.parameters(*constants, Description::kConstants);
      } else {
        call.constants(settings.constants, Description::kConstants);
      }
    }
  }

  static Settings<Config> checked(const Settings<Config>& settings) {
    const Limit& limit = settings.limit;
    STD_TORCH_CHECK(limit.value >= limit.min && limit.value <= limit.max, "robustflow: between ",
                    limit.min, " and ", limit.max, " ", limit.what, ", got ", limit.value, ".");
    return settings;
  }

  template <std::size_t... I>
  static auto to_tuple(std::optional<Tensor>* tensors, std::index_sequence<I...>) {
    return std::make_tuple(*std::move(tensors[I])...);
  }
};

template <class Device, Transform TRANSFORM, class Description>
using OperatorOf =
    Operator<Device, TRANSFORM, Description, decltype(&Description::settings),
             std::make_index_sequence<Description::kGroups - 1 + (Description::kConstants > 0)>>;

// Registers all operators for a device; called inside STABLE_TORCH_LIBRARY_IMPL.
template <class Device, class Library>
void register_operators(Library& library) {
#define ROBUSTFLOW_ENTRY(name, Description)                        \
  {                                                                \
    using Each = OperatorOf<Device, Transform::name, Description>; \
    library.impl(#name, TORCH_BOX(&Each::forward));                \
    library.impl(#name "_backward", TORCH_BOX(&Each::backward));   \
  }
  ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY)
#undef ROBUSTFLOW_ENTRY
}

}  // namespace
}  // namespace robustflow
