// The approximate instructions of a GPU, as wrong as they may be.
//
// Each is the exact value, moved as far as the instruction's bound allows: rcp.approx and
// sqrt.approx 1 ulp, ex2.approx 2 ulp (PTX ISA, the instructions' tables), with subnormal numbers
// flushed to zero. A function of the input's bits alone, so that results can be compared.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace robustflow::emulator {

inline float from_word(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline std::uint32_t to_word(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}

inline constexpr float kSmallestNormal = std::numeric_limits<float>::min();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the GPU makes of every NaN.
inline float canonical_nan() { return from_word(0x7fffffffu); }

inline float flushed(float v) {
  return std::fabs(v) < kSmallestNormal ? std::copysign(0.0f, v) : v;
}

// The number furthest from `exact`, positive, that lies within `ulps` of it.
inline float furthest(double exact, int ulps, std::uint32_t input) {
  if (exact >= std::numeric_limits<float>::max()) return kInfinity;
  if (exact < kSmallestNormal) return 0.0f;
  float below = static_cast<float>(exact);
  if (below > exact) below = from_word(to_word(below) - 1);
  const double step = double(from_word(to_word(below) + 1)) - below;
  const double beyond = (exact - below) / step;  // in [0, 1)
  const bool up = beyond == 0 ? (input * 0x9e3779b9u) >> 31 : beyond < 0.5;
  const int moved = up ? ulps : beyond == 0 ? -ulps : 1 - ulps;
  return flushed(from_word(to_word(below) + static_cast<std::uint32_t>(moved)));
}

inline float reciprocal_approximately(float v) {
  if (v != v) return canonical_nan();
  v = flushed(v);
  if (v == 0) return std::copysign(kInfinity, v);
  if (std::isinf(v)) return std::copysign(0.0f, v);
  return std::copysign(furthest(1 / std::fabs(double(v)), 1, to_word(v)), v);
}

// 2^v.
inline float exp2_approximately(float v) {
  if (v != v) return canonical_nan();
  if (flushed(v) == 0) return 1.0f;
  return furthest(std::exp2(double(v)), 2, to_word(v));
}

inline float square_root_approximately(float v) {
  v = flushed(v);
  if (v == 0 || v == kInfinity) return v;
  if (!(v > 0)) return canonical_nan();
  return furthest(std::sqrt(double(v)), 1, to_word(v));
}

// max.NaN and min.NaN: NaN wins, and +0 is more than -0.
inline float max_nan(float a, float b) {
  if (a != a || b != b) return canonical_nan();
  if (a == b) return from_word(to_word(a) & to_word(b));
  return a > b ? a : b;
}
inline float min_nan(float a, float b) {
  if (a != a || b != b) return canonical_nan();
  if (a == b) return from_word(to_word(a) | to_word(b));
  return a < b ? a : b;
}

}  // namespace robustflow::emulator
