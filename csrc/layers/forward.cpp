// A layer's results.
#include "blocks.h"
#include "memory_pool.h"

namespace robustflow {

using network::Blocks;
using network::NodePointers;

template <class T>
variable_list Layer::forward_typed(bool inverse, const LayerTensors& tensors,
                                   variable_list* saved) const {
  const at::Tensor& x = tensors.x;
  const int64_t samples = x.size(0);
  const Blocks blocks(samples);
  const int64_t stride = blocks.stride, count = blocks.count;
  const int64_t outputs = network_.nodes[network_.output()].size;
  const auto options = x.options();
  const MaskedParameters<T> parameters(tensors.parameters, tensors.masks);
  // What waits for the backward pass comes from the pool.
  const auto allocate = [&](at::IntArrayRef sizes) {
    return saved ? empty_from_pool(sizes, options) : at::empty(sizes, options);
  };
  const at::Tensor params = allocate({count, outputs, stride});
  const at::Tensor before = at::empty({count, int64_t(changed_.size()), stride}, options);
  const at::Tensor values = saved ? allocate({count, network_.saved.units, stride}) : at::Tensor();
  const Rows<const T> rows(x);

  // The kept features have a spline of their own. The network reads what is data: its input when
  // the layer goes forward, its result when it goes back.
  at::Tensor kept, kept_after, kept_logabsdet;
  if (unconditional_) {
    kept = at::empty({count, int64_t(kept_.size()), stride}, options);
    for (int64_t block = 0; block < count; ++block)
      gather(rows, kept_, SampleRange(block, stride, samples),
             kept.data_ptr<T>() + block * kept_.size() * stride);
    variable_list arguments{by_sample(kept)};
    for (const at::Tensor& t : tensors.unconditional)
      arguments.push_back(t.unsqueeze(0).unsqueeze(0));
    arguments = arguments_of(spline_, std::move(arguments));
    const variable_list results = spline_.call(arguments, (*unconditional_)[inverse]);
    kept_after = with_adjacent_samples(results[0]);
    kept_logabsdet = with_adjacent_samples(results[1]);
  }

  for_blocks(count, [&](int64_t block) {
    const SampleRange range(block, stride, samples);
    const network::Memory& temporary = saved ? network_.temporary : network_.inference;
    const Scratch<T> scratch(temporary.units * stride, x);
    NodePointers<T> pointers(network_.nodes.size());
    network::set_pointers(temporary, scratch.data, stride, pointers);
    if (saved)
      network::set_pointers(network_.saved,
                            values.data_ptr<T>() + block * network_.saved.units * stride, stride,
                            pointers);
    pointers.back() = params.data_ptr<T>() + block * outputs * stride;
    T* const memory = pointers[0];
    if (unconditional_ && inverse) {
      for (size_t i = 0; i < kept_.size(); ++i) {
        const T* from = kept_after.const_data_ptr<T>() + block * kept_after.stride(0) +
                        i * kept_after.stride(2);
        std::copy_n(from, stride, memory + i * stride);
      }
    } else {
      gather(rows, read_, range, memory);
    }
    if (context_features_ > 0) {
      const Rows<const T> context(tensors.context);
      gather(context, all_columns(context_features_), range, memory + read_.size() * stride);
    }
    gather(rows, changed_, range, before.data_ptr<T>() + block * changed_.size() * stride);
    network::run_forward<T>(network_, parameters.data, stride, pointers);
  });

  variable_list results = spline_.call(
      arguments_of(spline_, {by_sample(before), parameters_by_sample(params, num_params_)}),
      configs_[inverse]);
  const at::Tensor after = with_adjacent_samples(results[0]);
  const at::Tensor logs = with_adjacent_samples(results[1]);
  at::Tensor y = at::empty({samples, features_}, options);
  at::Tensor logabsdet = at::empty({samples}, options);
  const Rows<T> out(y);
  for (int64_t block = 0; block < count; ++block) {
    const SampleRange range(block, stride, samples);
    scatter(after.const_data_ptr<T>() + block * after.stride(0), after.stride(2), changed_, range,
            false, out);
    if (unconditional_) {
      scatter(kept_after.const_data_ptr<T>() + block * kept_after.stride(0), kept_after.stride(2),
              kept_, range, false, out);
    }
  }
  if (!unconditional_) {
    for (const int64_t column : kept_) {
      const T* from = rows.column(column);
      T* to = out.column(column);
      for (int64_t i = 0; i < samples; ++i) to[i * out.row_stride] = from[i * rows.row_stride];
    }
  }
  sum_over_features<T>(logs, kept_logabsdet, logabsdet);
  if (saved) *saved = {values, params, before, kept};
  return {y, logabsdet};
}

variable_list Layer::forward(bool inverse, const LayerTensors& tensors,
                             variable_list* saved) const {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensors.x.scalar_type() == at::kDouble ? forward_typed<double>(inverse, tensors, saved)
                                                : forward_typed<float>(inverse, tensors, saved);
}

}  // namespace robustflow
