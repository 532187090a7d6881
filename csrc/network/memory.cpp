// Where a network's nodes lie in memory. Nodes that are not needed at the same time share it.
#include <algorithm>
#include <utility>

#include "network.h"

namespace robustflow::network {
namespace {

// The first and the last step that touches a node.
struct Life {
  int begin, end;
};

// The chosen nodes, each at the first place that is free throughout its life; inputs come first,
// where they are asked for, and stay.
Memory assign(const Network& network, const std::vector<Life>& lives,
              const std::vector<char>& chosen, bool with_inputs) {
  const int count = static_cast<int>(network.nodes.size());
  Memory memory;
  memory.first.assign(count, -1);
  if (with_inputs) {
    for (int node = 0; node < network.num_inputs; ++node)
      memory.first[node] = network.nodes[node].first;
    memory.units = network.inputs;
  }
  const Index start = memory.units;
  for (int node = network.num_inputs; node < count; ++node) {
    if (!chosen[node] || node == network.output()) continue;
    Index first = start;
    for (bool moved = true; moved;) {
      moved = false;
      for (int other = network.num_inputs; other < node; ++other) {
        if (memory.first[other] < 0) continue;
        const bool same_time =
            lives[other].begin <= lives[node].end && lives[node].begin <= lives[other].end;
        const Index end = memory.first[other] + network.nodes[other].size;
        if (same_time && first < end && memory.first[other] < first + network.nodes[node].size) {
          first = end;
          moved = true;
        }
      }
    }
    memory.first[node] = first;
    memory.units = std::max(memory.units, first + network.nodes[node].size);
  }
  return memory;
}

}  // namespace

Network::Network(std::vector<Node> nodes_, std::vector<Step> steps_, int num_inputs_, int inputs_)
    : nodes(std::move(nodes_)), steps(std::move(steps_)), num_inputs(num_inputs_), inputs(inputs_) {
  const std::size_t count = nodes.size();
  const int last = static_cast<int>(steps.size());
  std::vector<Life> values(count, {last, -1});
  std::vector<char> read_again(count, 0), all_nodes(count, 1);
  for (int i = 0; i < last; ++i) {
    const Step& step = steps[i];
    values[step.out].begin = i;
    for (const int node : {step.in, step.other, step.out})
      values[node].end = std::max(values[node].end, i);
    const bool reads_input = step.kind == Kind::linear || step.kind == Kind::gate;
    if (reads_input) read_again[step.in] = read_again[step.other] = 1;
    if (step.kind == Kind::activation)
      read_again[needs_input(step.activation) ? step.in : step.out] = 1;
  }
  std::vector<char> not_read_again(count);
  for (std::size_t node = 0; node < count; ++node) not_read_again[node] = !read_again[node];
  // A gradient lives as long as its values: from the step that made the node, which is the last to
  // read it, to the last step that reads the node, which is the first to write it.
  const std::vector<Life> whole_pass(count, {0, last});
  saved = assign(*this, whole_pass, read_again, true);
  temporary = assign(*this, values, not_read_again, false);
  inference = assign(*this, values, all_nodes, true);
  gradients = assign(*this, values, all_nodes, true);
}

Order::Order(const Network& network, std::vector<std::vector<Index>> units_,
             std::vector<std::vector<Index>> ends_)
    : units(std::move(units_)), ends(std::move(ends_)) {
  const Index features = network.nodes[0].size;
  memory.first = {network.inputs - features};
  if (network.num_inputs > 1) memory.first.insert(memory.first.end(), {0, 0});
  memory.units = network.inputs;
  for (int node = network.num_inputs; node < network.output(); ++node) {
    memory.first.push_back(memory.units);
    memory.units += network.nodes[node].size;
  }
  memory.first.push_back(-1);
}

}  // namespace robustflow::network
