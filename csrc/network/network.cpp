#include "network.h"

#include <algorithm>

namespace robustflow::network {
namespace {

template <class T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels<float>() {
  return active_kernels().float32;
}
template <>
const Kernels<double>& kernels<double>() {
  return active_kernels().float64;
}

// Units of a node: the first that is computed, and the end of those that are known then.
struct Range {
  Index begin, end;
};

// Computes the units of range(node) of every node but the inputs.
template <class T, class F>
void run_units(const Network& network, const std::vector<const T*>& parameters, Index stride,
               const NodePointers<T>& values, const F& range) {
  const Kernels<T>& run = kernels<T>();
  for (const Step& step : network.steps) {
    const Range units = range(step.out);
    if (units.begin == units.end) continue;
    const Index start = units.begin * stride, size = (units.end - units.begin) * stride;
    const T *in = values[step.in], *other = values[step.other];
    T* out = values[step.out] + start;
    switch (step.kind) {
      case Kind::linear: {
        const Index row = network.nodes[step.in].size;
        run.linear(parameters[step.weight] + units.begin * row, row,
                   step.bias < 0 ? nullptr : parameters[step.bias] + units.begin,
                   units.end - units.begin, range(step.in).end, in, stride, out);
        break;
      }
      case Kind::activation:
        run.activate(step.activation, in + start, size, out);
        break;
      case Kind::gate:
        run.gate(in + start, other + start, size, out);
        break;
      case Kind::sum:
        run.add(in + start, other + start, size, out);
        break;
      case Kind::count:
        break;
    }
  }
}

}  // namespace

template <class T>
void run_forward(const Network& network, const std::vector<const T*>& parameters, Index stride,
                 const NodePointers<T>& values) {
  run_units(network, parameters, stride, values,
            [&](int node) { return Range{0, network.nodes[node].size}; });
}

template <class T>
void run_step(const Network& network, const Order& order, int step,
              const std::vector<const T*>& parameters, Index stride,
              const NodePointers<T>& values) {
  run_units(network, parameters, stride, values,
            [&](int node) { return Range{order.begin(node, step), order.ends[node][step]}; });
}

template <class T>
void run_backward(const Network& network, const std::vector<const T*>& parameters, Index stride,
                  const NodePointers<const T>& values, const NodePointers<T>& gradients,
                  bool needs_inputs, const std::vector<T*>& parameter_gradients) {
  const Kernels<T>& run = kernels<T>();
  const auto is_input = [&](int node) { return node < network.num_inputs; };
  const auto is_needed = [&](int node) { return needs_inputs || !is_input(node); };
  // Whether a node's gradient has a first part, to which others are added. Inputs overlap, so theirs
  // begin at zero.
  std::vector<char> has_value(network.nodes.size(), 0);
  has_value[network.output()] = 1;
  std::fill_n(gradients[0], network.inputs * stride, T(0));
  const auto adds = [&](int node) {
    const bool had = has_value[node] || is_input(node);
    has_value[node] = 1;
    return had;
  };
  for (auto at = network.steps.rbegin(); at != network.steps.rend(); ++at) {
    const Step& step = *at;
    if (!has_value[step.out]) continue;  // nothing depends on it
    const T* g = gradients[step.out];
    const int units = network.nodes[step.out].size, inputs = network.nodes[step.in].size;
    const Index size = units * stride;
    switch (step.kind) {
      case Kind::linear:
        if (parameter_gradients[step.weight])
          run.weight_gradient(g, units, values[step.in], inputs, stride,
                              parameter_gradients[step.weight]);
        if (step.bias >= 0 && parameter_gradients[step.bias])
          run.bias_gradient(g, units, stride, parameter_gradients[step.bias]);
        if (is_needed(step.in))
          run.input_gradient(parameters[step.weight], units, inputs, g, stride, adds(step.in),
                             gradients[step.in]);
        break;
      case Kind::activation:
        if (is_needed(step.in)) {
          const bool by_input = needs_input(step.activation);
          run.activation_gradient(step.activation, values[by_input ? step.in : step.out], g, size,
                                  adds(step.in), gradients[step.in]);
        }
        break;
      case Kind::gate: {
        const bool adds_in = adds(step.in), adds_other = adds(step.other);
        run.gate_gradient(values[step.in], values[step.other], g, size, adds_in, gradients[step.in],
                          adds_other, gradients[step.other]);
        break;
      }
      case Kind::sum:
        for (const int node : {step.in, step.other})
          if (is_needed(node)) run.accumulate(g, size, adds(node), gradients[node]);
        break;
      case Kind::count:
        break;
    }
  }
}

#define ROBUSTFLOW_NETWORK(T)                                                                    \
  template void run_forward(const Network&, const std::vector<const T*>&, Index,                 \
                            const NodePointers<T>&);                                             \
  template void run_step(const Network&, const Order&, int, const std::vector<const T*>&, Index, \
                         const NodePointers<T>&);                                                \
  template void run_backward(const Network&, const std::vector<const T*>&, Index,                \
                             const NodePointers<const T>&, const NodePointers<T>&, bool,         \
                             const std::vector<T*>&);
ROBUSTFLOW_NETWORK(float)
ROBUSTFLOW_NETWORK(double)
#undef ROBUSTFLOW_NETWORK

}  // namespace robustflow::network
