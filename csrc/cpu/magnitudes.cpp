// The loops of magnitudes.h for one instruction set, -DROBUSTFLOW_ISA=<name>.
//
// The sums are arrays of kLanes partial sums, so that loops vectorise: a compiler may not reorder
// additions of floats. The file includes only headers without functions, so that the linker cannot
// use a function compiled for one set elsewhere in the program.
#include "magnitudes.h"

#include <cfloat>
#include <cstdint>

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {
namespace {

using cpu::Magnitudes;
using cpu::Mask;
using cpu::Shape;
using Index = std::int64_t;

constexpr int kLanes = 32;
// The number of values that are summed in float32 before the sum is added to one in float64.
constexpr Index kRun = 2048;
// The number of channels that one pass over the peaks reads.
constexpr int kChannelsPerPass = 4;

inline float absolute(float x) {
#if defined(__GNUC__)
  return __builtin_fabsf(x);
#else
  return x < 0 ? -x : x;
#endif
}

// For runs with values that are not finite, or whose sum of squares overflows float32.
void add_carefully(const float* x, Index size, float* peaks, Magnitudes& sums) {
  double total[kLanes] = {}, squares[kLanes] = {};
  float finite[kLanes] = {};  // counts, small enough to be exact in float32
  const auto add = [&](Index i, int k) {
    const float value = x[i], counts = absolute(value) <= FLT_MAX ? 1.0f : 0.0f;
    const double kept = counts != 0 ? value : 0.0f;
    total[k] += kept;
    squares[k] += kept * kept;
    finite[k] += counts;
    peaks[i] = value == value ? peaks[i] : value;  // NaN then stays: no comparison replaces it
  };
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int k = 0; k < kLanes; ++k) add(i + k, k);
  for (; i < size; ++i) add(i, 0);
  sums.nonfinite += size;
  for (int k = 0; k < kLanes; ++k) {
    sums.total += total[k];
    sums.squares += squares[k];
    sums.nonfinite -= static_cast<Index>(finite[k]);
  }
}

// Adds kRows channels, `stride` apart, to the sums and peaks. The peaks are read and written once.
template <int kRows>
void add(const float* x, Index stride, Index size, float* peaks, Magnitudes& sums) {
  float total[kLanes] = {}, squares[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      float peak = peaks[i + k];
      for (int row = 0; row < kRows; ++row) {
        const float value = x[row * stride + i + k], magnitude = absolute(value);
        total[k] += value;
        squares[k] += value * value;
        peak = magnitude > peak ? magnitude : peak;
      }
      peaks[i + k] = peak;
    }
  }
  double all = 0, all_squares = 0;
  for (int k = 0; k < kLanes; ++k) {
    all += total[k];
    all_squares += squares[k];
  }
  for (int row = 0; row < kRows; ++row) {
    for (Index j = i; j < size; ++j) {
      const float value = x[row * stride + j], magnitude = absolute(value);
      all += value;
      all_squares += double(value) * value;
      peaks[j] = magnitude > peaks[j] ? magnitude : peaks[j];
    }
  }
  if (all_squares <= FLT_MAX) {  // false if it is NaN, as it is if any x is NaN
    sums.total += all;
    sums.squares += all_squares;
    return;
  }
  for (int row = 0; row < kRows; ++row) add_carefully(x + row * stride, size, peaks, sums);
}

// The largest of the peaks that are not NaN.
float largest(const float* peaks, Index size) {
  float maxima[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int k = 0; k < kLanes; ++k)
      maxima[k] = peaks[i + k] > maxima[k] ? peaks[i + k] : maxima[k];
  for (; i < size; ++i) maxima[0] = peaks[i] > maxima[0] ? peaks[i] : maxima[0];
  for (int k = 1; k < kLanes; ++k) maxima[0] = maxima[k] > maxima[0] ? maxima[k] : maxima[0];
  return maxima[0];
}

Magnitudes summarise(const float* x, Shape shape, float* peaks) {
  Magnitudes sums{};
  const Index stride = shape.positions;
  for (Index n = 0; n < shape.samples; ++n, x += shape.channels * stride, peaks += stride) {
    for (Index s = 0; s < stride; ++s) peaks[s] = 0;
    for (Index first = 0; first < stride; first += kRun) {
      const Index size = stride - first < kRun ? stride - first : kRun;
      const float* rows = x + first;
      Index c = 0;
      for (; c + kChannelsPerPass <= shape.channels; c += kChannelsPerPass)
        add<kChannelsPerPass>(rows + c * stride, stride, size, peaks + first, sums);
      for (; c < shape.channels; ++c) add<1>(rows + c * stride, stride, size, peaks + first, sums);
    }
  }
  peaks -= shape.samples * stride;
  const Index count = shape.samples * stride;
  sums.peak = largest(peaks, count);
  if (sums.nonfinite > 0)
    for (Index i = 0; i < count; ++i)
      if (peaks[i] != peaks[i]) sums.peak = peaks[i];
  return sums;
}

// 1 if a value crosses: see MagnitudeTable::crossings.
inline std::uint8_t crosses(float before, float after, float growth, float magnitude) {
  const float in = absolute(before), out = absolute(after);
  const float threshold = growth * (in > 1 ? in : 1);
  const bool grew = out >= threshold, reached = (out >= magnitude) & (in < magnitude);
  return static_cast<std::uint8_t>((in <= FLT_MAX) & (grew | reached | !(out <= FLT_MAX)));
}

void crossings(const float* before, const float* after, Mask mask, Shape shape, float growth,
               float magnitude, std::uint8_t* marks) {
  const Index size = shape.positions;
  for (Index n = 0; n < shape.samples; ++n, marks += size) {
    for (Index s = 0; s < size; ++s) marks[s] = 0;
    for (Index c = 0; c < shape.channels; ++c, before += size, after += size) {
      if (mask.data == nullptr) {
        for (Index s = 0; s < size; ++s)
          marks[s] |= crosses(before[s], after[s], growth, magnitude);
        continue;
      }
      const std::uint8_t* masked = mask.data + n * mask.sample_stride + c * mask.channel_stride;
      for (Index s = 0; s < size; ++s)
        marks[s] |= crosses(before[s], after[s], growth, magnitude) & (masked[s] ^ 1);
    }
  }
}

constexpr cpu::MagnitudeTable kTable{summarise, crossings};

}  // namespace
}  // namespace ROBUSTFLOW_ISA

namespace cpu {

#define ROBUSTFLOW_JOIN(a, b) a##b
#define ROBUSTFLOW_TABLE(isa) ROBUSTFLOW_JOIN(magnitude_table_, isa)

const MagnitudeTable& ROBUSTFLOW_TABLE(ROBUSTFLOW_ISA)() { return ROBUSTFLOW_ISA::kTable; }

}  // namespace cpu
}  // namespace robustflow
