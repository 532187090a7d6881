// A layer's gradients.
#include "blocks.h"
#include "gradients.h"

namespace robustflow {

using network::NodePointers;

namespace {

// The gradients of a network's parameters. Blocks are divided into slabs, each with sums of its own,
// which are then added in order.
template <class T>
class ParameterSums {
 public:
  const int64_t slabs;

  // Of the parameters that `needed` asks for, from its entry `first` on.
  ParameterSums(const variable_list& parameters, const std::vector<bool>& needed, size_t first,
                int64_t blocks)
      : slabs(std::min(blocks, kMaxGradientParts)), totals_(parameters.size()) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      offsets_.push_back(size_);
      if (!needed[first + i]) continue;
      totals_[i] = zeros(parameters[i].sizes(), parameters[i].options());
      size_ += parameters[i].numel();
    }
    if (slabs > 1) others_ = zeros({(slabs - 1) * size_}, parameters[0].options());
  }

  // Where a slab adds; null where nothing is needed.
  std::vector<T*> of_slab(int64_t slab) const {
    std::vector<T*> pointers(totals_.size(), nullptr);
    for (size_t i = 0; i < pointers.size(); ++i)
      if (totals_[i].defined())
        pointers[i] = slab == 0 ? totals_[i].template data_ptr<T>() : other(slab, i);
    return pointers;
  }

  // The totals, with the masks of the parameters applied.
  const variable_list& finish(const variable_list& masks) {
    for (size_t i = 0; i < totals_.size(); ++i) {
      if (!totals_[i].defined()) continue;
      T* total = totals_[i].template data_ptr<T>();
      const int64_t count = totals_[i].numel();
      for (int64_t slab = 1; slab < slabs; ++slab) {
        const T* from = other(slab, i);
        for (int64_t j = 0; j < count; ++j) total[j] += from[j];
      }
      if (masks[i].defined()) apply_mask<T>(totals_[i], masks[i], totals_[i]);
    }
    return totals_;
  }

 private:
  T* other(int64_t slab, size_t i) const {
    return others_.data_ptr<T>() + (slab - 1) * size_ + offsets_[i];
  }

  variable_list totals_;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
  at::Tensor others_;
};

}  // namespace

template <class T>
variable_list Layer::backward_typed(bool inverse, const LayerTensors& tensors,
                                    const variable_list& saved, const std::vector<bool>& needed,
                                    const variable_list& cotangents) const {
  const at::Tensor &values = saved[0], &params = saved[1], &before = saved[2], &kept = saved[3];
  const at::Tensor &gy = cotangents[0], &gl = cotangents[1];
  const int64_t samples = tensors.x.size(0), count = values.size(0), stride = values.size(2);
  const int64_t outputs = params.size(1), inputs = network_.inputs;
  const auto options = tensors.x.options();
  const bool needs_x = needed[0], needs_context = needed[1];
  const size_t first_unconditional = 2 + num_parameters_;
  bool needs_unconditional = false;
  for (size_t i = 0; i < num_unconditional(); ++i)
    needs_unconditional = needs_unconditional || needed[first_unconditional + i];

  // The spline of the changed features.
  const auto block_of = [&](const std::vector<int64_t>& columns) {
    const at::Tensor out = at::empty({count, int64_t(columns.size()), stride}, options);
    for (int64_t block = 0; block < count; ++block)
      gather(Rows<const T>(gy), columns, SampleRange(block, stride, samples),
             out.data_ptr<T>() + block * columns.size() * stride);
    return out;
  };
  at::Tensor logs;
  if (gl.defined()) {
    logs = zeros({count, stride}, options);
    T* to = logs.data_ptr<T>();
    const T* from = gl.const_data_ptr<T>();
    for (int64_t i = 0; i < samples; ++i) to[i] = from[i * gl.stride(0)];
  }
  const auto of_features = [&](const std::vector<int64_t>& columns) {
    return logs.defined() ? logs.unsqueeze(2).expand({count, stride, int64_t(columns.size())})
                          : at::Tensor();
  };
  const at::Tensor gy_changed = gy.defined() ? by_sample(block_of(changed_)) : at::Tensor();
  variable_list spline_gradients = spline_.gradients(
      arguments_of(spline_, {by_sample(before), parameters_by_sample(params, num_params_)}),
      configs_[inverse], needs_x ? 3 : 2, {gy_changed, of_features(changed_)});
  at::Tensor gparams = spline_gradients[1];
  const at::Tensor like = parameters_by_sample(params, num_params_);
  if (gparams.strides() != like.strides()) {
    at::Tensor copy = at::empty_strided(like.sizes(), like.strides(), options);
    copy.copy_(gparams);
    gparams = copy;
  }

  // The network. Going back, the gradient of the kept features' own parameters passes through it.
  const MaskedParameters<T> parameters(tensors.parameters, tensors.masks);
  ParameterSums<T> sums(tensors.parameters, needed, 2, count);
  const bool needs_inputs = needs_x || needs_context || (inverse && needs_unconditional);
  const at::Tensor input_gradients =
      needs_inputs ? at::empty({count, inputs, stride}, options) : at::Tensor();
  for_blocks(sums.slabs, [&](int64_t slab) {
    const std::vector<T*> to = sums.of_slab(slab);
    const Scratch<T> scratch(network_.gradients.units * stride, tensors.x);
    NodePointers<const T> pointers(network_.nodes.size());
    NodePointers<T> node_gradients(network_.nodes.size());
    network::set_pointers(network_.gradients, scratch.data, stride, node_gradients);
    const int64_t end = (slab + 1) * count / sums.slabs;
    for (int64_t block = slab * count / sums.slabs; block < end; ++block) {
      network::set_pointers(network_.saved,
                            values.const_data_ptr<T>() + block * network_.saved.units * stride,
                            stride, pointers);
      pointers.back() = params.const_data_ptr<T>() + block * outputs * stride;
      node_gradients.back() = gparams.data_ptr<T>() + block * outputs * stride;
      network::run_backward<T>(network_, parameters.data, stride, pointers, node_gradients,
                               needs_inputs, to);
      if (needs_inputs)
        std::copy_n(scratch.data, inputs * stride,
                    input_gradients.data_ptr<T>() + block * inputs * stride);
    }
  });
  variable_list gradients(2);
  for (const at::Tensor& total : sums.finish(tensors.masks)) gradients.push_back(total);
  gradients.resize(first_unconditional + num_unconditional());

  // The spline of the kept features.
  at::Tensor gkept;
  if (unconditional_ && (needs_x || needs_unconditional)) {
    at::Tensor cotangent = gy.defined() ? block_of(kept_) : at::Tensor();
    if (inverse) {
      const at::Tensor through = input_gradients.slice(1, 0, static_cast<int64_t>(kept_.size()));
      cotangent = cotangent.defined() ? cotangent.add_(through) : through.contiguous();
    }
    variable_list arguments{by_sample(kept)};
    for (const at::Tensor& t : tensors.unconditional)
      arguments.push_back(t.unsqueeze(0).unsqueeze(0));
    arguments = arguments_of(spline_, std::move(arguments));
    int64_t mask = needs_x ? 1 : 0;
    for (size_t i = 0; i < 3; ++i) mask |= int64_t(needed[first_unconditional + i]) << (i + 1);
    variable_list kept_gradients = spline_.gradients(
        arguments, (*unconditional_)[inverse], mask,
        {cotangent.defined() ? by_sample(cotangent) : at::Tensor(), of_features(kept_)});
    if (needs_x) gkept = with_adjacent_samples(kept_gradients[0]);
    for (size_t i = 0; i < 3; ++i)
      if (needed[first_unconditional + i])
        gradients[first_unconditional + i] =
            kept_gradients[i + 1].reshape(tensors.unconditional[i].sizes()).contiguous();
  }

  if (needs_x) {
    gradients[0] = at::empty({samples, features_}, options);
    const Rows<T> out(gradients[0]);
    const at::Tensor gx = with_adjacent_samples(spline_gradients[0]);
    for (int64_t block = 0; block < count; ++block) {
      const SampleRange range(block, stride, samples);
      scatter(gx.const_data_ptr<T>() + block * gx.stride(0), gx.stride(2), changed_, range, false,
              out);
      if (unconditional_) {
        scatter(gkept.const_data_ptr<T>() + block * gkept.stride(0), gkept.stride(2), kept_, range,
                false, out);
      } else {
        for (const int64_t column : kept_) {
          T* to = out.column(column) + range.first * out.row_stride;
          if (gy.defined()) {
            const Rows<const T> from(gy);
            const T* at = from.column(column) + range.first * from.row_stride;
            for (int64_t i = 0; i < range.count; ++i)
              to[i * out.row_stride] = at[i * from.row_stride];
          } else {
            for (int64_t i = 0; i < range.count; ++i) to[i * out.row_stride] = T(0);
          }
        }
      }
      if (!(unconditional_ && inverse))  // else it has passed through the kept features' spline
        scatter(input_gradients.const_data_ptr<T>() + block * inputs * stride, stride, read_, range,
                true, out);
    }
  }
  if (needs_context) {
    gradients[1] = at::empty({samples, context_features_}, options);
    const std::vector<int64_t> columns = all_columns(context_features_);
    for (int64_t block = 0; block < count; ++block)
      scatter(input_gradients.const_data_ptr<T>() + (block * inputs + read_.size()) * stride,
              stride, columns, SampleRange(block, stride, samples), false, Rows<T>(gradients[1]));
  }
  return gradients;
}

variable_list Layer::backward(bool inverse, const LayerTensors& tensors, const variable_list& saved,
                              const std::vector<bool>& needed,
                              const variable_list& cotangents) const {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensors.x.scalar_type() == at::kDouble
             ? backward_typed<double>(inverse, tensors, saved, needed, cotangents)
             : backward_typed<float>(inverse, tensors, saved, needed, cotangents);
}

}  // namespace robustflow
