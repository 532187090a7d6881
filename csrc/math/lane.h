// The lane: the number type of the formulas in this folder.
//
// A lane V is a float, a double, or a pack of SIMD registers of them (csrc/cpu/simd.h). Formulas
// use the operators + - * /, comparisons, and the primitives below, which are branch-free and pass
// NaN through. The product of two packs has a type of its own, Pack::Product, which becomes a fused
// multiply-add when something is added to it. Templates do not accept it: pass them V(a * b).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ROBUSTFLOW_FN __host__ __device__ __forceinline__
#else
#define ROBUSTFLOW_FN inline __attribute__((always_inline))
#endif
#define ROBUSTFLOW_INLINE __attribute__((always_inline))  // for lambdas

// Code compiled for several instruction sets has an inline namespace for each, so that the linker
// cannot merge their functions.
#ifndef ROBUSTFLOW_ISA
#define ROBUSTFLOW_ISA one_thread
#endif

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

template <class V>
struct lane_traits {  // packs and FastFloat have these as members
  using scalar = typename V::scalar;
  using mask = typename V::mask;
  using integer = typename V::integer;
};
template <>
struct lane_traits<float> {
  using scalar = float;
  using mask = bool;
  using integer = std::int32_t;
};
template <>
struct lane_traits<double> {
  using scalar = double;
  using mask = bool;
  using integer = std::int64_t;
};
template <class V>
using scalar_t = typename lane_traits<V>::scalar;
template <class V>
using mask_t = typename lane_traits<V>::mask;
template <class V>
using integer_t = typename lane_traits<V>::integer;  // integers, which can be added
template <class V>
inline constexpr bool is_float32 = sizeof(scalar_t<V>) == 4;

// The layout of IEEE numbers. Adding round_to_integer and subtracting it again rounds to an
// integer. After the addition alone, the lowest bits are that integer plus the exponent's bias.
template <class T>
struct ieee;
template <>
struct ieee<float> {
  using integer = std::int32_t;
  using bits = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr integer bias = 127;
  static constexpr integer one = 0x3f800000;
  static constexpr integer sqrt_half = 0x3f3504f3;
  static constexpr float round_to_integer = 12582912.0f + bias;  // 1.5 * 2^23
};
template <>
struct ieee<double> {
  using integer = std::int64_t;
  using bits = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr integer bias = 1023;
  static constexpr integer one = 0x3ff0000000000000;
  static constexpr integer sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double round_to_integer = 6755399441055744.0 + bias;  // 1.5 * 2^52
};

#define ROBUSTFLOW_SCALAR_LANE(T)                                                             \
  ROBUSTFLOW_FN T select(bool mask, T yes, T no) { return mask ? yes : no; }                  \
  ROBUSTFLOW_FN T max(T limit, T v) { return limit > v ? limit : v; } /* NaN in v stays */    \
  ROBUSTFLOW_FN T min(T limit, T v) { return limit < v ? limit : v; } /* NaN in v stays */    \
  ROBUSTFLOW_FN ieee<T>::integer to_bits(T v) {                                               \
    ieee<T>::integer bits;                                                                    \
    __builtin_memcpy(&bits, &v, sizeof v);                                                    \
    return bits;                                                                              \
  }                                                                                           \
  ROBUSTFLOW_FN T from_bits(ieee<T>::integer bits) {                                          \
    T v;                                                                                      \
    __builtin_memcpy(&v, &bits, sizeof v);                                                    \
    return v;                                                                                 \
  }                                                                                           \
  /* 2^n from n + round_to_integer, for an integer n that is a normal exponent. */            \
  ROBUSTFLOW_FN T power_of_two(T shifted) {                                                   \
    using U = ieee<T>::bits;                                                                  \
    return from_bits(ieee<T>::integer(U(to_bits(shifted)) << ieee<T>::mantissa_bits));        \
  }                                                                                           \
  /* v = mantissa * 2^exponent, mantissa in [sqrt 1/2, sqrt 2), for v positive and normal. */ \
  ROBUSTFLOW_FN void split(T v, T& mantissa, T& exponent) {                                   \
    const auto e = (to_bits(v) - ieee<T>::sqrt_half) >> ieee<T>::mantissa_bits;               \
    exponent = static_cast<T>(e);                                                             \
    mantissa = from_bits(to_bits(v) - (e << ieee<T>::mantissa_bits));                         \
  }                                                                                           \
  /* Cheaper: v = mantissa_field * 2^(exponent_field - bias), mantissa_field in [1, 2). */    \
  ROBUSTFLOW_FN T mantissa_field(T v) {                                                       \
    constexpr auto kField = (ieee<T>::integer(1) << ieee<T>::mantissa_bits) - 1;              \
    return from_bits((to_bits(v) & kField) | ieee<T>::one);                                   \
  }                                                                                           \
  ROBUSTFLOW_FN ieee<T>::integer exponent_field(T v) {                                        \
    return to_bits(v) >> ieee<T>::mantissa_bits;                                              \
  }                                                                                           \
  ROBUSTFLOW_FN void convert(ieee<T>::integer n, T& out) { out = static_cast<T>(n); }
ROBUSTFLOW_SCALAR_LANE(float)
ROBUSTFLOW_SCALAR_LANE(double)
#undef ROBUSTFLOW_SCALAR_LANE

ROBUSTFLOW_FN float absolute(float v) { return __builtin_fabsf(v); }
ROBUSTFLOW_FN double absolute(double v) { return __builtin_fabs(v); }
ROBUSTFLOW_FN float square_root(float v) { return __builtin_sqrtf(v); }
ROBUSTFLOW_FN double square_root(double v) { return __builtin_sqrt(v); }

// f(FIRST), ... f(n - 1): unrolled if COUNT > 0, which then equals n; a loop if COUNT is 0.
template <int COUNT, int FIRST = 0, class F>
ROBUSTFLOW_FN void unroll(int n, F&& f) {
  if constexpr (COUNT == 0) {
    for (int i = FIRST; i < n; ++i) f(i);
  } else if constexpr (FIRST < COUNT) {
    f(FIRST);
    unroll<COUNT, FIRST + 1>(n, f);
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
