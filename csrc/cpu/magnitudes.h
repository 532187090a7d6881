// Summaries of the values that pass a layer: a few sums, and the largest at each position.
//
// For (N, C, S), contiguous, in float32; one pass over memory. For tools that watch every layer of
// a flow while it samples, so that watching costs little.
#pragma once

#include <cstdint>

namespace robustflow::cpu {

struct Shape {
  std::int64_t samples, channels, positions;
};

// A mask over (N, C, S) whose positions lie side by side; null: none.
struct Mask {
  const std::uint8_t* data;
  std::int64_t sample_stride, channel_stride;
};

struct Magnitudes {
  double peak;            // the largest |x|; NaN where there is one
  double total, squares;  // of the finite values, and of their squares
  std::int64_t nonfinite;
};

// One for each instruction set.
struct MagnitudeTable {
  // peaks (N, S): the largest |x| of each position's channels; NaN where there is one.
  Magnitudes (*summarise)(const float* x, Shape shape, float* peaks);
  // marks (N, S): 1 where a channel crosses outside the mask: |before| is finite, and |after| is
  // `growth` times max(1, |before|) or more, or as large as `magnitude` where |before| is not, or
  // not finite.
  void (*crossings)(const float* before, const float* after, Mask mask, Shape shape, float growth,
                    float magnitude, std::uint8_t* marks);
};

}  // namespace robustflow::cpu
