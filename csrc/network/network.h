// A small network as a list of steps, run on blocks of samples: plain memory, no torch.
//
// A node is some adjacent units, and a unit's values for the samples of a block are adjacent: unit u
// of a node starts at u * stride. The first nodes are the network's inputs and overlap: features,
// context, and both together.
#pragma once

#include <vector>

#include "kernels.h"

namespace robustflow::network {

enum class Kind : int { linear, activation, gate, sum, count };

// `in` and, of a gate and a sum, `other` are the nodes that it reads; `out` is a later one.
struct Step {
  Kind kind;
  int in, other, out;
  int weight, bias;  // of a linear step: their numbers among the parameters; a bias of -1: none
  Activation activation;
};

struct Node {
  int first, size;  // units; `first` is that of an input within all inputs
};

// Where nodes lie in a piece of memory, in units. Those that are not in it have -1.
struct Memory {
  std::vector<Index> first;
  Index units = 0;
};

// The inputs come first in the memory `saved`, `inference` and `gradients`. The output is in none of
// them: its memory is the caller's.
struct Network {
  std::vector<Node> nodes;  // the last one is the output, which the last step makes
  std::vector<Step> steps;
  int num_inputs;           // nodes
  int inputs;               // units
  Memory saved, temporary;  // what the backward pass reads, and what it does not
  Memory inference;         // everything, without a backward pass
  Memory gradients;

  Network() = default;
  Network(std::vector<Node> nodes, std::vector<Step> steps, int num_inputs, int inputs);

  int output() const { return static_cast<int>(nodes.size()) - 1; }
};

// In which steps the units of a masked network can be computed while its features become known one
// after another. Units are sorted by step, in memory and in the parameters.
struct Order {
  std::vector<std::vector<Index>> units;  // of each node, sorted
  std::vector<std::vector<Index>> ends;   // of each node: how many are known after each step
  Memory memory;                          // of all nodes at once, the context before the features

  Order(const Network& network, std::vector<std::vector<Index>> units,
        std::vector<std::vector<Index>> ends);

  int steps() const { return static_cast<int>(ends[0].size()); }
  Index begin(int node, int step) const { return step == 0 ? 0 : ends[node][step - 1]; }
};

// Samples of a block: few enough for a core's cache to hold what a step reads and writes. The stride
// is an odd number of cache lines, so that units do not compete for the same sets of a cache.
inline constexpr Index kBlockSamples = 208;

// How samples are divided into blocks.
struct Blocks {
  Index count, stride;

  explicit Blocks(Index samples) {
    count = (samples + kBlockSamples - 1) / kBlockSamples;
    const Index each = (samples + count - 1) / count;
    stride = (each + kBlockLanes - 1) / kBlockLanes * kBlockLanes;
    if (stride / kBlockLanes % 2 == 0 && stride > 2 * kBlockLanes) stride += kBlockLanes;
  }
};

// Where the nodes of one block lie.
template <class T>
using NodePointers = std::vector<T*>;

template <class T>
void set_pointers(const Memory& memory, T* start, Index stride, NodePointers<T>& pointers) {
  for (std::size_t node = 0; node < memory.first.size(); ++node)
    if (memory.first[node] >= 0) pointers[node] = start + memory.first[node] * stride;
}

// The inputs' values are there; computes all others.
template <class T>
void run_forward(const Network& network, const std::vector<const T*>& parameters, Index stride,
                 const NodePointers<T>& values);

// The same for those units that a step computes. The parameters are sorted as the units are.
template <class T>
void run_step(const Network& network, const Order& order, int step,
              const std::vector<const T*>& parameters, Index stride, const NodePointers<T>& values);

// The output's gradients are there. Adds to `parameter_gradients`, whose entries are null where none is
// needed, and computes the inputs' where `needs_inputs`.
template <class T>
void run_backward(const Network& network, const std::vector<const T*>& parameters, Index stride,
                  const NodePointers<const T>& values, const NodePointers<T>& gradients,
                  bool needs_inputs, const std::vector<T*>& parameter_gradients);

}  // namespace robustflow::network
