// Activations and gates over contiguous numbers, and their gradients.
#pragma once

#include "../cpu/simd.h"
#include "../math/elementary.h"
#include "kernels.h"

namespace robustflow::network {
inline namespace ROBUSTFLOW_ISA {

// A pack at a time: y[i] = f(i).
template <class T, class F>
ROBUSTFLOW_FN void map(Index size, T* y, const F& f) {
  using V = Pack<T, 1>;
  for (Index i = 0; i < size; i += V::lanes) V(f(i)).store(y + i);
}
// The same, or added to y.
template <class T, class F>
ROBUSTFLOW_FN void map_gradient(Index size, bool adds, T* y, const F& f) {
  using V = Pack<T, 1>;
  if (adds) {
    map(size, y, [&](Index i) ROBUSTFLOW_INLINE { return V::load(y + i) + V(f(i)); });
  } else {
    map(size, y, f);
  }
}

template <class T>
void activate(Activation activation, const T* x, Index size, T* y) {
  using V = Pack<T, 1>;
  const V slope(activation.slope);
  const auto apply = [&](const auto& f) ROBUSTFLOW_INLINE {
    map(size, y, [&](Index i) ROBUSTFLOW_INLINE { return f(V::load(x + i)); });
  };
  switch (activation.function) {
    case Function::relu:  // NaN stays
      return apply([](V v) ROBUSTFLOW_INLINE { return max(V(0), v); });
    case Function::tanh:
      return apply([](V v) ROBUSTFLOW_INLINE { return hyperbolic_tangent(v).value; });
    case Function::elu:
      return apply([=](V v) ROBUSTFLOW_INLINE {
        const V low = max(V(-kExponentLimit<V>), min(V(0), v));
        return select(v > V(0), v, V(slope * exponential_pair(low).minus_one));
      });
    case Function::leaky_relu:
      return apply([=](V v) ROBUSTFLOW_INLINE { return select(v > V(0), v, V(v * slope)); });
    case Function::sigmoid:
      return apply([](V v) ROBUSTFLOW_INLINE { return sigmoid(v).value; });
    case Function::silu:
      return apply([](V v) ROBUSTFLOW_INLINE { return V(v * sigmoid(v).value); });
    case Function::count:
      return;
  }
}

// `values` are the outputs of the activation, or its inputs where needs_input().
template <class T>
void activation_gradient(Activation activation, const T* values, const T* g, Index size, bool adds,
                         T* gx) {
  using V = Pack<T, 1>;
  const V slope(activation.slope);
  const auto apply = [&](const auto& derivative) ROBUSTFLOW_INLINE {
    map_gradient(size, adds, gx, [&](Index i) ROBUSTFLOW_INLINE {
      return V(V::load(g + i) * derivative(V::load(values + i)));
    });
  };
  switch (activation.function) {
    case Function::relu:  // a NaN's gradient passes, and none where g is not finite and x <= 0
      return map_gradient(size, adds, gx, [&](Index i) ROBUSTFLOW_INLINE {
        return select(V::load(values + i) <= V(0), V(0), V::load(g + i));
      });
    case Function::tanh:
      return apply([](V y) ROBUSTFLOW_INLINE { return V(V(1) - y * y); });
    case Function::elu:
      return apply([=](V y) ROBUSTFLOW_INLINE { return select(y > V(0), V(1), V(y + slope)); });
    case Function::leaky_relu:
      return apply([=](V y) ROBUSTFLOW_INLINE { return select(y > V(0), V(1), slope); });
    case Function::sigmoid:
      return apply([](V y) ROBUSTFLOW_INLINE { return V(y * (V(1) - y)); });
    case Function::silu:
      return apply([](V x) ROBUSTFLOW_INLINE {
        const auto s = sigmoid(x);
        return V(s.value * (V(1) + x * s.complement));
      });
    case Function::count:
      return;
  }
}

template <class T>
void gate(const T* a, const T* b, Index size, T* y) {
  using V = Pack<T, 1>;
  map(size, y,
      [=](Index i) ROBUSTFLOW_INLINE { return V(V::load(a + i) * sigmoid(V::load(b + i)).value); });
}

template <class T>
void gate_gradient(const T* a, const T* b, const T* g, Index size, bool adds_a, T* ga, bool adds_b,
                   T* gb) {
  using V = Pack<T, 1>;
  for (Index i = 0; i < size; i += V::lanes) {
    const V cotangent = V::load(g + i), logit = V::load(b + i);
    const auto s = sigmoid(logit);
    const V by_a = cotangent * s.value;
    const V by_b = V(cotangent * V::load(a + i)) * s.slope(logit);
    V(adds_a ? V::load(ga + i) + by_a : by_a).store(ga + i);
    V(adds_b ? V::load(gb + i) + by_b : by_b).store(gb + i);
  }
}

template <class T>
void add(const T* a, const T* b, Index size, T* y) {
  using V = Pack<T, 1>;
  map(size, y, [=](Index i) ROBUSTFLOW_INLINE { return V::load(a + i) + V::load(b + i); });
}

template <class T>
void accumulate(const T* x, Index size, bool adds, T* y) {
  using V = Pack<T, 1>;
  map_gradient(size, adds, y, [=](Index i) ROBUSTFLOW_INLINE { return V::load(x + i); });
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow::network
