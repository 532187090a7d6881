// The inverse of an autoregressive layer: each unit of its network is computed once, in the first step
// in which the features that it depends on are known.
#include "blocks.h"

namespace robustflow {

using network::Blocks;
using network::NodePointers;
using network::Order;

namespace {

// The weights and biases of a network, masks applied, sorted as its units are.
template <class T>
struct SortedParameters {
  std::vector<std::vector<T>> numbers;
  std::vector<const T*> data;

  SortedParameters(const network::Network& network, const Order& order,
                   const MaskedParameters<T>& parameters)
      : numbers(parameters.data.size()), data(parameters.data.size()) {
    for (const network::Step& step : network.steps) {
      if (step.kind != network::Kind::linear) continue;
      const auto &units = order.units[step.out], &inputs = order.units[step.in];
      std::vector<T>& weight = numbers[step.weight];
      weight.reserve(units.size() * inputs.size());
      for (const int64_t unit : units) {
        const T* row = parameters.data[step.weight] + unit * inputs.size();
        for (const int64_t input : inputs) weight.push_back(row[input]);
      }
      data[step.weight] = weight.data();
      if (step.bias < 0) continue;
      std::vector<T>& bias = numbers[step.bias];
      bias.reserve(units.size());
      for (const int64_t unit : units) bias.push_back(parameters.data[step.bias][unit]);
      data[step.bias] = bias.data();
    }
  }
};

}  // namespace

template <class T>
variable_list Layer::invert_typed(const LayerTensors& tensors) const {
  const Order& order = *order_;
  const at::Tensor& y = tensors.x;
  const int64_t samples = y.size(0);
  const Blocks blocks(samples);
  const int64_t stride = blocks.stride, count = blocks.count;
  const int output = network_.output();
  const auto options = y.options();
  const SortedParameters<T> parameters(network_, order,
                                       MaskedParameters<T>(tensors.parameters, tensors.masks));
  const std::vector<int64_t>& features = order.units[0];
  const at::Tensor params = at::empty({count, network_.nodes[output].size, stride}, options);
  const at::Tensor before = at::empty({count, features_, stride}, options);
  const at::Tensor values = at::empty({count, order.memory.units, stride}, options);
  const at::Tensor logs = zeros({count, stride}, options);
  at::Tensor x = at::empty({samples, features_}, options);
  at::Tensor logabsdet = at::empty({samples}, options);
  const Rows<T> out(x);
  const auto pointers_of = [&](int64_t block) {
    NodePointers<T> pointers(network_.nodes.size());
    network::set_pointers(order.memory, values.data_ptr<T>() + block * values.stride(0), stride,
                          pointers);
    pointers[output] = params.data_ptr<T>() + block * params.stride(0);
    return pointers;
  };

  for (int64_t block = 0; block < count; ++block) {
    const SampleRange range(block, stride, samples);
    gather(Rows<const T>(y), features, range, before.data_ptr<T>() + block * before.stride(0));
    if (context_features_ > 0)
      gather(Rows<const T>(tensors.context), order.units[1], range,
             values.data_ptr<T>() + block * values.stride(0));
  }
  for (int step = 0; step < order.steps(); ++step) {
    for_blocks(count, [&](int64_t block) {
      network::run_step<T>(network_, order, step, parameters.data, stride, pointers_of(block));
    });
    const int64_t first = order.begin(output, step) / num_params_;
    const int64_t end = order.ends[output][step] / num_params_;
    variable_list results = spline_.call(
        arguments_of(spline_,
                     {by_sample(before.slice(1, first, end)),
                      parameters_by_sample(params.slice(1, first * num_params_, end * num_params_),
                                           num_params_)}),
        configs_[true]);
    const at::Tensor after = with_adjacent_samples(results[0]);
    const at::Tensor change = with_adjacent_samples(results[1]);
    for (int64_t block = 0; block < count; ++block) {
      const T* from = after.const_data_ptr<T>() + block * after.stride(0);
      const T* log = change.const_data_ptr<T>() + block * change.stride(0);
      T* total = logs.data_ptr<T>() + block * stride;
      T* known = pointers_of(block)[0] + first * stride;
      for (int64_t i = first; i < end; ++i, known += stride) {
        std::copy_n(from, stride, known);
        for (int64_t sample = 0; sample < stride; ++sample) total[sample] += log[sample];
        from += after.stride(2);
        log += change.stride(2);
      }
    }
  }
  for (int64_t block = 0; block < count; ++block)
    scatter<T>(pointers_of(block)[0], stride, features, SampleRange(block, stride, samples), false,
               out);
  sum_over_features<T>(logs.unsqueeze(2), {}, logabsdet);
  return {x, logabsdet};
}

variable_list Layer::invert(const LayerTensors& tensors) const {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensors.x.scalar_type() == at::kDouble ? invert_typed<double>(tensors)
                                                : invert_typed<float>(tensors);
}

}  // namespace robustflow
