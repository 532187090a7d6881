// The 16-bit float types as they lie in memory, and their conversions in portable code.
#pragma once

#include "../dtype.h"
#include "lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

ROBUSTFLOW_FN float widen(bfloat16 v) {
  return from_bits(std::int32_t(std::uint32_t(v.bits) << 16));
}
ROBUSTFLOW_FN float widen_portably(float16 v) {
  // Shift the bits to where a float has them. The multiplication by 2^112 corrects the exponent's
  // bias and normalises subnormal numbers.
  const std::uint32_t magnitude = std::uint32_t(v.bits & 0x7fff) << 13;
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000) << 16;
  const std::uint32_t scaled =
      std::uint32_t(to_bits(from_bits(std::int32_t(magnitude)) * 0x1p112f));
  const bool special = (v.bits & 0x7c00) == 0x7c00;
  return from_bits(std::int32_t((special ? magnitude | 0x7f800000u : scaled) | sign));
}

// Rounds to nearest, ties to even; NaN stays NaN.
ROBUSTFLOW_FN bfloat16 narrow_portably(float v, bfloat16) {
  const std::uint32_t bits = std::uint32_t(to_bits(v));
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {std::uint16_t(v == v ? rounded : (bits >> 16) | 0x40u)};
}
ROBUSTFLOW_FN float16 narrow_portably(float v, float16) {
  const std::uint32_t bits = std::uint32_t(to_bits(v));
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 rounds at the last bit of a half
    half = std::uint32_t(to_bits(from_bits(std::int32_t(magnitude)) + 0.5f)) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {std::uint16_t(half | sign)};
}

// A floating-point format: the number of its significant bits (with the implicit leading one), and
// the exponent of its smallest normal number.
struct Format {
  int digits, min_exponent;
};
inline constexpr Format kFloat64{53, -1022}, kFloat32{24, -126}, kBfloat16{8, -126},
    kFloat16{11, -14};

ROBUSTFLOW_FN constexpr Format format_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return kFloat64;
    case DType::float32:
      return kFloat32;
    case DType::bfloat16:
      return kBfloat16;
    default:
      return kFloat16;
  }
}

template <class V>
ROBUSTFLOW_FN constexpr bool is_narrower(Format format) {
  return format.digits <= ieee<scalar_t<V>>::mantissa_bits;
}

// Rounds as a conversion to the narrower `format` would, but stays in the lane's type. Unlike a
// conversion, it never overflows to infinity, and it leaves numbers beyond 2^100 as they are.
template <class V>
ROBUSTFLOW_FN V rounded_to(V v, Format format) {
  using I = ieee<scalar_t<V>>;
  const V magnitude = absolute(v);
  const V at_normal = max(V(__builtin_ldexp(1.0, format.min_exponent)), magnitude);
  V exponent;  // with the bias
  convert(exponent_field(at_normal), exponent);
  // Adding this power of two shifts all bits below the format's last one out of the lane.
  const int above = I::mantissa_bits + 1 - format.digits - int(I::bias);
  const V power = power_of_two(exponent + V(double(I::round_to_integer) + above));
  const V rounded = select(magnitude < V(0x1p100), (magnitude + power) - power, magnitude);
  return select(v < V(0), V(0) - rounded, rounded);
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
