// The operators that robustflow/ops defines, for any device: checks, allocation, and a hand-over to
// the device's driver. This file and the two that register it (ops_cpu.cpp, ops_cuda.cpp) are the
// only ones that see torch, and of torch only the stable ABI.
//
// A Device says where its tensors live and runs their problems:
//
//   explicit Device(const Tensor& x);  // makes the device of x the current one while it lives
//   bool owns(const Tensor& t) const;
//   void run_transform(const Problem& problem, int batch_dims, void* logabsdet);
//   void run_gradient(const Problem& problem);
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "math/affine.h"
#include "math/modified_rq.h"
#include "math/rq_spline.h"
#include "problem.h"

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

// A dense tensor in the memory order of t.
Tensor dense_like(const Tensor& t) {
  if (!t.is_contiguous()) return torch::stable::empty_like(t);
  const std::vector<int64_t> sizes = sizes_of(t);
  return empty_strided(t, sizes, contiguous_strides(sizes), t.scalar_type());
}

Tensor nothing(const Tensor& like) { return empty_strided(like, {0}, {1}, like.scalar_type()); }

// Puts a problem together from tensors in canonical form (robustflow/ops/__init__.py), and runs it.
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
    problem_.wide = false;
    input(x, 0);
  }

  // A tensor over the leading dimensions of x, or none.
  void input(const MaybeTensor& t) {
    if (t) return input(*t, 0);
    problem_.in[problem_.num_inputs++].planes = 1;
  }
  // A tensor of parameters, whose last dimension has `planes` of them.
  void parameters(const Tensor& t, int64_t planes) {
    STD_TORCH_CHECK(t.dim() == problem_.dims + 1 && t.size(t.dim() - 1) == planes,
                    "robustflow: parameters must have x's dimensions and a last one of ", planes,
                    ".");
    input(t, planes);
  }
  // Numbers that are the same for every element. They must outlive the problem's run.
  void constants(const double* values, int count) {
    Operand& operand = problem_.in[problem_.num_inputs++];
    operand.data = const_cast<double*>(values);
    operand.dtype = DType::float64;
    operand.planes = count;
    operand.plane_stride = 1;
    operand.on_host = true;
  }
  // Some planes of the parameters that came before, in place of a tensor.
  void part_of_input(int first_plane, int planes, int input) {
    part(problem_.in[problem_.num_inputs++], first_plane, planes, input);
  }
  void part_of_output(int first_plane, int planes, int output) {
    part(problem_.out[problem_.num_outputs++], first_plane, planes, output);
  }

  Tensor output_like(const Tensor& t, bool wanted = true) {
    const int planes = t.dim() > problem_.dims ? static_cast<int>(t.size(t.dim() - 1)) : 0;
    if (wanted) {
      Tensor out = dense_like(t);
      if (empty()) torch::stable::zero_(out);
      describe(out, planes, problem_.out[problem_.num_outputs++]);
      return out;
    }
    describe(t, planes, problem_.out[problem_.num_outputs]);
    problem_.out[problem_.num_outputs++].data = nullptr;
    return nothing(t);
  }

  bool empty() const {
    for (int d = 0; d < problem_.dims; ++d)
      if (problem_.size[d] == 0) return true;
    return false;
  }

  // y, the log-determinant, and the run between them.
  std::tuple<Tensor, Tensor> transform(const Tensor& x, int64_t batch_dims, const void* config) {
    STD_TORCH_CHECK(batch_dims >= 0 && batch_dims <= problem_.dims,
                    "robustflow: batch_dims must lie between 0 and x's dimensions.");
    Tensor y = output_like(x);
    const ScalarType dtype = problem_.wide ? ScalarType::Double : ScalarType::Float;
    std::vector<int64_t> sizes = sizes_of(x);
    Tensor logabsdet;
    if (batch_dims == problem_.dims) {
      const auto strides = y.strides();
      logabsdet = empty_strided(x, sizes, {strides.begin(), strides.end()}, dtype);
      describe(logabsdet, 0, problem_.out[problem_.num_outputs++]);
    } else {
      sizes.resize(batch_dims);
      logabsdet = empty_strided(x, sizes, contiguous_strides(sizes), dtype);
      problem_.out[problem_.num_outputs++].planes = 1;
    }
    if (empty()) torch::stable::zero_(logabsdet);
    problem_.config = config;
    device_.run_transform(problem_, static_cast<int>(batch_dims), logabsdet.mutable_data_ptr());
    return {std::move(y), std::move(logabsdet)};
  }

  void gradient(const void* config) {
    problem_.config = config;
    device_.run_gradient(problem_);
  }

 private:
  void input(const Tensor& t, int64_t planes) {
    STD_TORCH_CHECK(device_.owns(t), "robustflow: all tensors of a call must be on one device.");
    Operand& operand = problem_.in[problem_.num_inputs++];
    describe(t, static_cast<int>(planes), operand);
    problem_.wide = problem_.wide || operand.dtype == DType::float64;
  }

  void describe(const Tensor& t, int planes, Operand& operand) const {
    const auto sizes = t.sizes(), strides = t.strides();
    const int dims = static_cast<int>(sizes.size()) - (planes > 0);
    operand.data = t.data_ptr();
    operand.dtype = dtype_of(t);
    operand.planes = planes > 0 ? planes : 1;
    operand.plane_stride = planes > 0 ? strides[dims] : 0;
    STD_TORCH_CHECK(dims <= problem_.dims, "robustflow: a tensor has more dimensions than x.");
    for (int d = 0; d < dims; ++d) {
      STD_TORCH_CHECK(sizes[d] == problem_.size[d] || sizes[d] == 1, "robustflow: dimension ", d,
                      " is ", sizes[d], " where x has ", problem_.size[d], " (1 would be shared).");
      operand.stride[d] = sizes[d] == 1 ? 0 : strides[d];
    }
  }

  static void part(Operand& operand, int first_plane, int planes, int of) {
    operand.part_of = of;
    operand.first_plane = first_plane;
    operand.planes = planes;
  }

  Device device_;
  Problem problem_;
};

bool wants(int64_t needed, int gradient) { return needed >> gradient & 1; }

// ---- modified RQ -------------------------------------------------------------------------------

ModifiedRqConfig modified_rq_config(double left, double right, double min_bin,
                                    double min_derivative, bool softclip) {
  return {left, right, min_bin, min_derivative, softclip, -1 / std::log(min_derivative)};
}

template <class Device>
std::tuple<Tensor, Tensor> modified_rq(const Tensor& x, const Tensor& params, bool inverse,
                                       double left, double right, double min_bin,
                                       double min_derivative, bool softclip, int64_t batch_dims) {
  const auto config = modified_rq_config(left, right, min_bin, min_derivative, softclip);
  Call<Device> call(Transform::modified_rq, inverse, x);
  call.parameters(params, 4);
  return call.transform(x, batch_dims, &config);
}

template <class Device>
std::tuple<Tensor, Tensor> modified_rq_backward(const MaybeTensor& grad_y,
                                                const MaybeTensor& grad_logabsdet, const Tensor& x,
                                                const Tensor& params, bool inverse, double left,
                                                double right, double min_bin, double min_derivative,
                                                bool softclip, int64_t, int64_t needed) {
  const auto config = modified_rq_config(left, right, min_bin, min_derivative, softclip);
  Call<Device> call(Transform::modified_rq, inverse, x);
  call.parameters(params, 4);
  call.input(grad_y);
  call.input(grad_logabsdet);
  Tensor grad_x = call.output_like(x, wants(needed, 0));
  Tensor grad_params = call.output_like(params, wants(needed, 1));
  call.gradient(&config);
  return {std::move(grad_x), std::move(grad_params)};
}

// ---- K-bin RQ ----------------------------------------------------------------------------------

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return kFloat64;
    case DType::float32:
      return kFloat32;
    case DType::bfloat16:
      return kBfloat16;
    default:
      return kFloat16;
  }
}

// The arguments of the operator, and its operands in the order of operands::rq::Input.
template <class Device>
struct RqCall {
  RqSplineConfig config;
  double edges[4];
  int num_bins, num_derivatives;
  bool packed;
  Call<Device> builder;

  RqCall(const Tensor& x, const Tensor& widths, const MaybeTensor& heights,
         const MaybeTensor& derivatives, const MaybeTensor& box, int64_t num_bins_, bool inverse,
         int64_t tails, int64_t parametrization, double left, double right, double bottom,
         double top, double min_bin_width, double min_bin_height, double min_derivative,
         double logit_scale)
      : config{static_cast<int>(num_bins_),
               static_cast<Tails>(tails),
               static_cast<Parametrization>(parametrization),
               min_bin_width,
               min_bin_height,
               min_derivative,
               logit_scale,
               -1 / std::log(min_derivative),
               format_of(dtype_of(x))},
        edges{left, right, bottom, top},
        num_bins(config.num_bins),
        num_derivatives(rq_num_derivatives(num_bins, config.tails)),
        packed(!heights || !derivatives),
        builder(Transform::rq, inverse, x) {
    STD_TORCH_CHECK(num_bins >= 1 && num_bins <= kMaxBins, "robustflow: between 1 and ", kMaxBins,
                    " bins, got ", num_bins, ".");
    if (packed) {
      builder.parameters(widths, 2 * num_bins + num_derivatives);
      builder.part_of_input(num_bins, num_bins, operands::rq::kWidths);
      builder.part_of_input(2 * num_bins, num_derivatives, operands::rq::kWidths);
    } else {
      builder.parameters(widths, num_bins);
      builder.parameters(*heights, num_bins);
      if (num_derivatives > 0) {
        builder.parameters(*derivatives, num_derivatives);
      } else {
        builder.part_of_input(0, 0, operands::rq::kWidths);
      }
    }
    if (box) {
      builder.parameters(*box, 4);
    } else {
      builder.constants(edges, 4);
    }
  }
};

template <class Device>
std::tuple<Tensor, Tensor> rq(const Tensor& x, const Tensor& widths, const MaybeTensor& heights,
                              const MaybeTensor& derivatives, const MaybeTensor& box,
                              int64_t num_bins, bool inverse, int64_t tails,
                              int64_t parametrization, double left, double right, double bottom,
                              double top, double min_bin_width, double min_bin_height,
                              double min_derivative, double logit_scale, int64_t batch_dims) {
  RqCall<Device> call(x, widths, heights, derivatives, box, num_bins, inverse, tails,
                      parametrization, left, right, bottom, top, min_bin_width, min_bin_height,
                      min_derivative, logit_scale);
  return call.builder.transform(x, batch_dims, &call.config);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> rq_backward(
    const MaybeTensor& grad_y, const MaybeTensor& grad_logabsdet, const Tensor& x,
    const Tensor& widths, const MaybeTensor& heights, const MaybeTensor& derivatives,
    const MaybeTensor& box, int64_t num_bins, bool inverse, int64_t tails, int64_t parametrization,
    double left, double right, double bottom, double top, double min_bin_width,
    double min_bin_height, double min_derivative, double logit_scale, int64_t, int64_t needed) {
  RqCall<Device> call(x, widths, heights, derivatives, box, num_bins, inverse, tails,
                      parametrization, left, right, bottom, top, min_bin_width, min_bin_height,
                      min_derivative, logit_scale);
  Call<Device>& builder = call.builder;
  builder.input(grad_y);
  builder.input(grad_logabsdet);
  Tensor grad_x = builder.output_like(x, wants(needed, 0));
  Tensor grad_widths = builder.output_like(widths, wants(needed, 1));
  Tensor grad_heights = nothing(x), grad_derivatives = nothing(x);
  if (call.packed) {
    builder.part_of_output(call.num_bins, call.num_bins, operands::rq::kGradWidths);
    builder.part_of_output(2 * call.num_bins, call.num_derivatives, operands::rq::kGradWidths);
  } else {
    grad_heights = builder.output_like(*heights, wants(needed, 2));
    if (call.num_derivatives > 0) {
      grad_derivatives = builder.output_like(*derivatives, wants(needed, 3));
    } else {
      if (wants(needed, 3)) grad_derivatives = dense_like(*derivatives);
      builder.part_of_output(0, 0, operands::rq::kGradWidths);
    }
  }
  builder.gradient(&call.config);
  return {std::move(grad_x), std::move(grad_widths), std::move(grad_heights),
          std::move(grad_derivatives)};
}

// ---- affine ------------------------------------------------------------------------------------

AffineConfig affine_config(int64_t scale, double eps, double clamp, bool shift_first,
                           bool reciprocal) {
  return {static_cast<Scale>(scale), eps, clamp, shift_first, reciprocal};
}

template <class Device>
void affine_parameters(Call<Device>& call, const Tensor& params, const MaybeTensor& log_scale) {
  if (log_scale) {
    call.parameters(params, 1);
    call.parameters(*log_scale, 1);
  } else {
    call.parameters(params, 2);
    call.part_of_input(1, 1, operands::affine::kShift);
  }
}

template <class Device>
std::tuple<Tensor, Tensor> affine(const Tensor& x, const Tensor& params,
                                  const MaybeTensor& log_scale, bool inverse, int64_t scale,
                                  double eps, double clamp, bool shift_first, bool reciprocal,
                                  int64_t batch_dims) {
  const auto config = affine_config(scale, eps, clamp, shift_first, reciprocal);
  Call<Device> call(Transform::affine, inverse, x);
  affine_parameters(call, params, log_scale);
  return call.transform(x, batch_dims, &config);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> affine_backward(
    const MaybeTensor& grad_y, const MaybeTensor& grad_logabsdet, const Tensor& x,
    const Tensor& params, const MaybeTensor& log_scale, bool inverse, int64_t scale, double eps,
    double clamp, bool shift_first, bool reciprocal, int64_t, int64_t needed) {
  const auto config = affine_config(scale, eps, clamp, shift_first, reciprocal);
  Call<Device> call(Transform::affine, inverse, x);
  affine_parameters(call, params, log_scale);
  call.input(grad_y);
  call.input(grad_logabsdet);
  Tensor grad_x = call.output_like(x, wants(needed, 0));
  Tensor grad_params = call.output_like(params, wants(needed, 1));
  Tensor grad_log_scale = nothing(x);
  if (log_scale) {
    grad_log_scale = call.output_like(*log_scale, wants(needed, 2));
  } else {
    call.part_of_output(1, 1, operands::affine::kGradShift);
  }
  call.gradient(&config);
  return {std::move(grad_x), std::move(grad_params), std::move(grad_log_scale)};
}

}  // namespace
}  // namespace robustflow

// Registers the operators for a device, inside STABLE_TORCH_LIBRARY_IMPL(..., m).
#define ROBUSTFLOW_REGISTER(m, Device)                                                  \
  m.impl("modified_rq", TORCH_BOX(&robustflow::modified_rq<Device>));                   \
  m.impl("modified_rq_backward", TORCH_BOX(&robustflow::modified_rq_backward<Device>)); \
  m.impl("rq", TORCH_BOX(&robustflow::rq<Device>));                                     \
  m.impl("rq_backward", TORCH_BOX(&robustflow::rq_backward<Device>));                   \
  m.impl("affine", TORCH_BOX(&robustflow::affine<Device>));                             \
  m.impl("affine_backward", TORCH_BOX(&robustflow::affine_backward<Device>))
