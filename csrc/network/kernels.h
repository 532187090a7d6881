// The interface of the loops of small networks: plain memory, no torch.
//
// csrc/network/kernels.cpp is compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace robustflow::network {

using Index = std::int64_t;

// A multiple of the lanes of every instruction set, and of a cache line in float32.
inline constexpr Index kBlockLanes = 16;

// The activations, numbered as in robustflow/fused/program.py.
enum class Function : int { relu, tanh, elu, leaky_relu, sigmoid, silu, count };

// `slope` is alpha of elu and the slope of leaky_relu, neither negative.
struct Activation {
  Function function;
  double slope;
};

// Whether its gradient is computed from its input, and not from its output.
inline bool needs_input(const Activation& activation) {
  return activation.function == Function::silu;
}

template <class T>
struct Kernels {
  // A linear layer: y = w x + b, where b may be null; gx (+)= transposed w times g; and the
  // gradients by w and b, added to what is there. w is (units, inputs), contiguous; `linear` may
  // read fewer inputs than its rows have, which are `row` apart.
  void (*linear)(const T* w, Index row, const T* b, Index units, Index inputs, const T* x,
                 Index stride, T* y);
  void (*input_gradient)(const T* w, Index units, Index inputs, const T* g, Index stride, bool adds,
                         T* gx);
  void (*weight_gradient)(const T* g, Index units, const T* x, Index inputs, Index stride, T* gw);
  void (*bias_gradient)(const T* g, Index units, Index stride, T* gb);
  // Over `size` contiguous numbers, a multiple of kBlockLanes. The gradients are added where `adds`.
  void (*activate)(Activation, const T* x, Index size, T* y);
  // `v` is its input or its output, as needs_input() says.
  void (*activation_gradient)(Activation, const T* v, const T* g, Index size, bool adds, T* gx);
  // y = a sigmoid(b).
  void (*gate)(const T* a, const T* b, Index size, T* y);
  void (*gate_gradient)(const T* a, const T* b, const T* g, Index size, bool adds_a, T* ga,
                        bool adds_b, T* gb);
  void (*add)(const T* a, const T* b, Index size, T* y);
  // y += x, or y = x.
  void (*accumulate)(const T* x, Index size, bool adds, T* y);
};

struct KernelTable {
  Kernels<float> float32;
  Kernels<double> float64;
};

const KernelTable& active_kernels();
// Uses the instruction set `name` from the next call on; throws std::invalid_argument if it was not
// built. That this processor supports it, robustflow._C has checked.
void set_isa(const char* name);

}  // namespace robustflow::network
