// Statistics of a layer's output: a few sums, and the largest magnitude at each position.
//
// The tensors are (N, C, S), contiguous, float32, and are read once: robustflow.diagnostics
// computes this for every layer of a flow while it samples, so it must cost little.
#pragma once

#include <cstdint>

namespace robustflow::cpu {

struct Shape {
  std::int64_t samples, channels, positions;
};

// A mask (N, C, S) whose last dimension is contiguous; null: no mask.
struct Mask {
  const std::uint8_t* data;
  std::int64_t sample_stride, channel_stride;
};

struct Magnitudes {
  double peak;            // the largest |x|; NaN if any x is NaN
  double total, squares;  // sums of the finite values and of their squares
  std::int64_t nonfinite;
};

// One for each instruction set.
struct MagnitudeTable {
  // peaks (N, S): the largest |x| over the channels; NaN if any is NaN.
  Magnitudes (*summarise)(const float* x, Shape shape, float* peaks);
  // marks (N, S): 1 where any unmasked channel crosses. It does if |before| is finite and one of
  // these holds: |after| is not finite; |after| >= growth * max(1, |before|); |before| < magnitude
  // <= |after|.
  void (*crossings)(const float* before, const float* after, Mask mask, Shape shape, float growth,
                    float magnitude, std::uint8_t* marks);
};

}  // namespace robustflow::cpu
