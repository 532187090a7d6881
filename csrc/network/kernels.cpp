// The loops of small networks for one instruction set: see kernels.h.
#include "kernels.h"

#include <type_traits>

#include "elementwise.h"
#include "matrix.h"

#define ROBUSTFLOW_JOIN_(a, b) a##b
#define ROBUSTFLOW_JOIN(a, b) ROBUSTFLOW_JOIN_(a, b)

namespace robustflow::network {
inline namespace ROBUSTFLOW_ISA {

template <class T>
void linear(const T* w, Index row, const T* b, Index units, Index inputs, const T* x, Index stride,
            T* y) {
  multiply<T, false>(w, row, 1, units, inputs, b, x, stride, y);
}

template <class T>
void input_gradient(const T* w, Index units, Index inputs, const T* g, Index stride, bool adds,
                    T* gx) {
  const auto product = adds ? multiply<T, true> : multiply<T, false>;
  product(w, 1, inputs, inputs, units, nullptr, g, stride, gx);
}

template <class T>
Kernels<T> kernels_of() {
  return {linear<T>,        input_gradient<T>, weight_gradient<T>,
          bias_gradient<T>, activate<T>,       activation_gradient<T>,
          gate<T>,          gate_gradient<T>,  add<T>,
          accumulate<T>};
}

}  // namespace ROBUSTFLOW_ISA

const KernelTable& ROBUSTFLOW_JOIN(kernel_table_, ROBUSTFLOW_ISA)() {
  static const KernelTable table{kernels_of<float>(), kernels_of<double>()};
  return table;
}

}  // namespace robustflow::network
