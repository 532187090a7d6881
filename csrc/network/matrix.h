// Products of a linear layer with a block of samples, forward and both gradients.
//
// A block holds the values of each unit for all of its samples side by side: unit u starts at
// x + u * stride. So a register holds one unit for some samples, weights are read where they lie
// and broadcast, and nothing is copied or transposed. `stride` is a multiple of kBlockLanes, and the
// samples that fill the last registers are computed like the others.
#pragma once

#include <type_traits>
#include <utility>

#include "../cpu/simd.h"
#include "kernels.h"

namespace robustflow::network {
inline namespace ROBUSTFLOW_ISA {

// Units and registers of samples of one tile: its sums, the registers it reads and one weight stay
// in the instruction set's 16 or 32 registers.
#if defined(__AVX512F__)
inline constexpr int kTileUnits = 8, kTileRegisters = 3;
#elif defined(__AVX__)
inline constexpr int kTileUnits = 6, kTileRegisters = 2;
#else
inline constexpr int kTileUnits = 4, kTileRegisters = 2;
#endif

template <class T>
ROBUSTFLOW_FN vec<T> load(const T* p) {
  vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// One number in every lane. Subtracting 0, unlike adding it, changes nothing and costs nothing.
template <class T>
ROBUSTFLOW_FN vec<T> broadcast(T number) {
  return number - vec<T>{};
}
template <class T>
ROBUSTFLOW_FN void store(T* p, vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Calls f with compile-time counts of units and registers that cover `units` x `registers`:
// f(first unit, first register, integral constants of how many of each). The units vary fastest.
template <int UNITS, int REGISTERS, class F>
ROBUSTFLOW_FN void for_tiles(Index units, Index registers, const F& f) {
  using std::integral_constant;
  const auto column = [&](Index at, auto count) ROBUSTFLOW_INLINE {
    Index unit = 0;
    for (; unit + UNITS <= units; unit += UNITS)
      f(unit, at, integral_constant<int, UNITS>{}, count);
    if constexpr (UNITS > 4) {
      for (; unit + 4 <= units; unit += 4) f(unit, at, integral_constant<int, 4>{}, count);
    }
    if constexpr (UNITS > 2) {
      for (; unit + 2 <= units; unit += 2) f(unit, at, integral_constant<int, 2>{}, count);
    }
    if (unit < units) f(unit, at, integral_constant<int, 1>{}, count);
  };
  Index at = 0;
  for (; at + REGISTERS <= registers; at += REGISTERS)
    column(at, integral_constant<int, REGISTERS>{});
  if constexpr (REGISTERS > 2) {
    for (; at + 2 <= registers; at += 2) column(at, integral_constant<int, 2>{});
  }
  if (at < registers) column(at, integral_constant<int, 1>{});
}

// y[u] = start[u] + sum over k of w[u * unit_step + k * depth_step] * x[k], or added to y.
template <class T, bool ADDS>
void multiply(const T* w, Index unit_step, Index depth_step, Index units, Index depth,
              const T* start, const T* x, Index stride, T* y) {
  constexpr int kLanes = kRegisterLanes<T>;
  for_tiles<kTileUnits, kTileRegisters>(
      units, stride / kLanes,
      [=](Index unit, Index at, auto unit_count, auto register_count) ROBUSTFLOW_INLINE {
        constexpr int kUnits = unit_count, kRegisters = register_count;
        vec<T> sums[kUnits][kRegisters];
        T* to = y + unit * stride + at * kLanes;
        for (int u = 0; u < kUnits; ++u)
          for (int r = 0; r < kRegisters; ++r)
            sums[u][r] = ADDS ? load(to + u * stride + r * kLanes)
                              : broadcast(start ? start[unit + u] : T(0));
        const T* from = x + at * kLanes;
        const T* weight = w + unit * unit_step;
        for (Index k = 0; k < depth; ++k, from += stride, weight += depth_step) {
          vec<T> values[kRegisters];
          for (int r = 0; r < kRegisters; ++r) values[r] = load(from + r * kLanes);
          for (int u = 0; u < kUnits; ++u) {
            const vec<T> weight_lanes = broadcast(weight[u * unit_step]);
            for (int r = 0; r < kRegisters; ++r)
              sums[u][r] = register_fmadd(weight_lanes, values[r], sums[u][r]);
          }
        }
        for (int u = 0; u < kUnits; ++u)
          for (int r = 0; r < kRegisters; ++r) store(to + u * stride + r * kLanes, sums[u][r]);
      });
}

// The sum of a register's lanes, in a fixed order.
template <class T>
ROBUSTFLOW_FN T sum_lanes(vec<T> v) {
  T lanes[kRegisterLanes<T>];
  __builtin_memcpy(lanes, &v, sizeof v);
  for (int half = kRegisterLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// For lane i of add_neighbours(), the first of the two neighbours.
template <class T>
constexpr int first_neighbour(int i) {
  constexpr int kLanesOf128Bits = 16 / sizeof(T);
  const int first = kLanesOf128Bits == 4 ? i % 2 * 2 : 0;
  return i / kLanesOf128Bits * kLanesOf128Bits + first +
         i % kLanesOf128Bits / (kLanesOf128Bits / 2) * kRegisterLanes<T>;
}

// Sums of neighbours: of every 128 bits, the first half has a's and the second b's.
template <class T, int... LANES>
ROBUSTFLOW_FN vec<T> add_neighbours(vec<T> a, vec<T> b, std::integer_sequence<int, LANES...>) {
  return __builtin_shufflevector(a, b, first_neighbour<T>(LANES)...) +
         __builtin_shufflevector(a, b, (first_neighbour<T>(LANES) + 1)...);
}
template <class T>
ROBUSTFLOW_FN vec<T> add_neighbours(vec<T> a, vec<T> b) {
  return add_neighbours<T>(a, b, std::make_integer_sequence<int, kRegisterLanes<T>>{});
}

// Adds the lane sums of as many registers as 128 bits have numbers to memory.
template <class T>
ROBUSTFLOW_FN void add_lane_sums(const vec<T>* v, T* to) {
  typedef T quarter __attribute__((vector_size(16)));
  constexpr int kQuarters = kRegisterBytes / 16;
  vec<T> sums = add_neighbours<T>(v[0], v[1]);
  if constexpr (sizeof(T) == 4) sums = add_neighbours<T>(sums, add_neighbours<T>(v[2], v[3]));
  quarter parts[kQuarters], sum;
  __builtin_memcpy(parts, &sums, sizeof sums);
  for (int half = kQuarters / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  __builtin_memcpy(&sum, to, sizeof sum);
  sum += parts[0];
  __builtin_memcpy(to, &sum, sizeof sum);
}

// w[u * inputs + i] += sum over samples of g[u] x[i].
template <class T>
void weight_gradient(const T* g, Index units, const T* x, Index inputs, Index stride, T* w) {
  constexpr int kLanes = kRegisterLanes<T>, kLanesOf128Bits = 16 / sizeof(T);
  constexpr int kTileRows = kRegisterBytes == 64 ? 6 : 3;
  for_tiles<4, kTileRows>(inputs, units,
                          [=](Index input, Index unit, auto input_count, auto unit_count)
                              ROBUSTFLOW_INLINE {
                                constexpr int kInputs = input_count, kUnits = unit_count;
                                vec<T> sums[kUnits][kInputs] = {};
                                const T* left = g + unit * stride;
                                const T* right = x + input * stride;
                                for (Index at = 0; at < stride; at += kLanes) {
                                  vec<T> values[kInputs];
                                  for (int i = 0; i < kInputs; ++i)
                                    values[i] = load(right + i * stride + at);
                                  for (int u = 0; u < kUnits; ++u) {
                                    const vec<T> gradient = load(left + u * stride + at);
                                    for (int i = 0; i < kInputs; ++i)
                                      sums[u][i] = register_fmadd(gradient, values[i], sums[u][i]);
                                  }
                                }
                                for (int u = 0; u < kUnits; ++u) {
                                  T* to = w + (unit + u) * inputs + input;
                                  if constexpr (kInputs % kLanesOf128Bits == 0) {
                                    for (int i = 0; i < kInputs; i += kLanesOf128Bits)
                                      add_lane_sums<T>(&sums[u][i], to + i);
                                  } else {
                                    for (int i = 0; i < kInputs; ++i)
                                      to[i] += sum_lanes<T>(sums[u][i]);
                                  }
                                }
                              });
}

// b[u] += sum over samples of g[u].
template <class T>
void bias_gradient(const T* g, Index units, Index stride, T* b) {
  for (Index u = 0; u < units; ++u, g += stride) {
    vec<T> sum = {};
    for (Index at = 0; at < stride; at += kRegisterLanes<T>) sum += load(g + at);
    b[u] += sum_lanes<T>(sum);
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow::network
