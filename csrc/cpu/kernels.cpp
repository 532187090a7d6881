// The kernels of one instruction set: a loop over a block around the formulas of csrc/math.
//
// Compiled once per set with -DROBUSTFLOW_ISA=<name>. Includes nothing but our own headers, so that
// no function compiled for one set can be shared with the rest of the program.
#include "kernels.h"

#include "../math/affine.h"
#include "../math/log_product.h"
#include "../math/modified_rq.h"
#include "../math/rq_spline.h"
#include "copies.h"
#include "simd.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

using cpu::Block;
using cpu::Direction;
using cpu::kCacheLine;
using cpu::Planes;

constexpr bool is_inverse(Direction d) { return d == cpu::kInverse || d == cpu::kInverseGradient; }
constexpr bool is_gradient(Direction d) { return d >= cpu::kForwardGradient; }

// Registers side by side in a lane: as many as hide the latency of a formula, until they spill.
struct Registers {
  int transform, gradient;

  constexpr int of(Direction d) const { return is_gradient(d) ? gradient : transform; }
};
#if defined(__AVX512F__)
inline constexpr Registers kModifiedRqPack{4, 4}, kRqPack{2, 2}, kAffinePack{2, 1};
#elif defined(__AVX__)
inline constexpr Registers kModifiedRqPack{2, 2}, kRqPack{2, 2}, kAffinePack{2, 1};
#else
inline constexpr Registers kModifiedRqPack{1, 1}, kRqPack{1, 1}, kAffinePack{2, 1};
#endif

inline constexpr int kWidestPack = kModifiedRqPack.transform > kAffinePack.transform
                                       ? kModifiedRqPack.transform
                                       : kAffinePack.transform;
constexpr bool divides_widest(Registers r) {
  return kWidestPack % r.transform == 0 && kWidestPack % r.gradient == 0;
}
static_assert(divides_widest(kModifiedRqPack) && divides_widest(kRqPack) &&
              divides_widest(kAffinePack));

// How far ahead planes are fetched: the hardware's prefetcher stops at the end of a page.
inline constexpr std::int64_t kPrefetchBytes = 1024;

// What a lane V of each stream will need.
template <class V, class... T>
ROBUSTFLOW_FN void prefetch(const T*... streams) {
  constexpr int kLines = (sizeof(V) + kCacheLine - 1) / kCacheLine;
  repeat<kLines>(kLines, [&](int i) ROBUSTFLOW_INLINE {
    (__builtin_prefetch(reinterpret_cast<const char*>(streams) + kPrefetchBytes + i * kCacheLine),
     ...);
  });
}

// What the next block needs for its lane from i on.
template <class V, class T>
ROBUSTFLOW_FN void fetch_ahead(const Block<T>& block, std::int64_t i) {
  for (int k = 0; k < block.num_ahead; ++k) {
    const cpu::Ahead ahead = block.ahead[k];
    const char* lane = ahead.data + i * ahead.bytes;
    if (ahead.written) {
      for (std::int64_t b = 0; b < V::lanes * ahead.bytes; b += kCacheLine)
        __builtin_prefetch(lane + b, 1);
    } else {
      for (std::int64_t b = 0; b < V::lanes * ahead.bytes; b += kCacheLine)
        __builtin_prefetch(lane + b);
    }
  }
}

template <class V, class T>
ROBUSTFLOW_FN void put(const Block<T>& block, V v, T* to) {
  if (block.streams) {
    v.stream(to);
  } else {
    v.store(to);
  }
}

// The log-determinant of all elements that went into a product.
template <class V>
ROBUSTFLOW_FN double sum_of(LogProduct<V>& product) {
  using T = scalar_t<V>;
  const auto parts = product.parts();
  T logs[V::lanes], exponents[V::lanes];
  log_one_plus_reduced(parts.mantissa - V(1)).store(logs);
  parts.exponent.store(exponents);
  double total = 0, whole = 0;
  for (int i = 0; i < V::lanes; ++i) {
    total += logs[i];
    whole += exponents[i];
  }
  return total + whole * 0.69314718055994531;
}

// y and the log-determinant of a block. `compute(i)` gives {value, slope} of the elements from i
// on, `log_slope(i, slope)` the logarithm of the slope.
template <bool inverse, class V, class T, class Compute, class LogSlope>
ROBUSTFLOW_FN void transform_block(const Block<T>& block, Compute&& compute, LogSlope&& log_slope) {
  T *y = block.out[0].data, *logabsdet = block.out[1].data;
  LogProduct<V> product;
  int factors = 0;
  for (std::int64_t i = 0; i < block.size; i += V::lanes) {
    fetch_ahead<V>(block, i);
    auto out = compute(i);
    put(block, out.value, y + i);
    if (logabsdet) {
      const V log = log_slope(i, out.slope);
      put(block, inverse ? V(0) - log : log, logabsdet + i);
      continue;
    }
    if (i + V::lanes > block.size) {  // what lies behind the block does not count
      const auto counts = V::count_from(0) < V(double(block.size - i));
      out.slope = select(counts, out.slope, V(1));
    }
    product.multiply(out.slope);
    if (++factors == product.kMostFactors) {
      product.fold();
      factors = 0;
    }
  }
  if (!logabsdet) *block.logabsdet_sum += inverse ? -sum_of(product) : sum_of(product);
}

template <class T, Direction direction>
void modified_rq_kernel(const Block<T>& block, const void* config) {
  namespace op = operands::modified_rq;
  constexpr bool inverse = is_inverse(direction);
  constexpr bool gradient = is_gradient(direction);
  using V = Pack<T, kModifiedRqPack.of(direction)>;
  const ModifiedRq<V> transform(*static_cast<const ModifiedRqConfig*>(config));
  const T* x = block.in[op::kX].data;
  const Planes<const T> p = block.in[op::kParams];
  const T *w = p.data, *h = w + p.stride, *d = h + p.stride, *shift = d + p.stride;
  if constexpr (gradient) {
    const T *gy = block.in[op::kGradY].data, *gl = block.in[op::kGradLogabsdet].data;
    T* gx = block.out[op::kGradX].data;
    const Planes<T> gp = block.out[op::kGradParams];
    for (std::int64_t i = 0; i < block.size; i += V::lanes) {
      fetch_ahead<V>(block, i);
      prefetch<V>(x + i, w + i, h + i, d + i, shift + i, gy + i);
      const auto g = transform.template gradient<inverse>(
          V::load(x + i), V::load(w + i), V::load(h + i), V::load(d + i), V::load(shift + i),
          V::load(gy + i), V::load(gl + i));
      put(block, g.x, gx + i);
      put(block, g.width, gp.data + i);
      put(block, g.height, gp.data + gp.stride + i);
      put(block, g.derivative, gp.data + 2 * gp.stride + i);
      put(block, g.shift, gp.data + 3 * gp.stride + i);
    }
  } else {
    transform_block<inverse, V>(
        block,
        [&](std::int64_t i) ROBUSTFLOW_INLINE {
          prefetch<V>(x + i, w + i, h + i, d + i, shift + i);
          return transform.template transform<inverse>(
              V::load(x + i), V::load(w + i), V::load(h + i), V::load(d + i), V::load(shift + i));
        },
        [](std::int64_t, V slope) ROBUSTFLOW_INLINE { return logarithm(slope); });
  }
}

template <class T, Direction direction>
void affine_kernel(const Block<T>& block, const void* config) {
  namespace op = operands::affine;
  constexpr bool inverse = is_inverse(direction);
  constexpr bool gradient = is_gradient(direction);
  using V = Pack<T, kAffinePack.of(direction)>;
  const Affine<V> transform(*static_cast<const AffineConfig*>(config));
  const T* x = block.in[op::kX].data;
  const T *shift = block.in[op::kShift].data, *logit = block.in[op::kScale].data;
  if constexpr (gradient) {
    const T *gy = block.in[op::kGradY].data, *gl = block.in[op::kGradLogabsdet].data;
    T *gx = block.out[op::kGradX].data, *gs = block.out[op::kGradShift].data;
    T* ga = block.out[op::kGradScale].data;
    for (std::int64_t i = 0; i < block.size; i += V::lanes) {
      fetch_ahead<V>(block, i);
      prefetch<V>(x + i, shift + i, logit + i, gy + i);
      const auto g = transform.template gradient<inverse>(
          V::load(x + i), V::load(shift + i), V::load(logit + i), V::load(gy + i), V::load(gl + i));
      put(block, g.x, gx + i);
      put(block, g.shift, gs + i);
      put(block, g.logit, ga + i);
    }
  } else {
    transform_block<inverse, V>(
        block,
        [&](std::int64_t i) ROBUSTFLOW_INLINE {
          prefetch<V>(x + i, shift + i, logit + i);
          return transform.template transform<inverse>(V::load(x + i), V::load(shift + i),
                                                       V::load(logit + i));
        },
        [&](std::int64_t i, V slope)
            ROBUSTFLOW_INLINE { return transform.log_slope(V::load(logit + i), slope); });
  }
}

// The parameters of an element of the K-bin spline, in planes.
template <class V, class T>
struct RqSource {
  Planes<const T> w, h, d;
  std::int64_t i;
  ROBUSTFLOW_FN V width(int k) const { return V::load(w.data + k * w.stride + i); }
  ROBUSTFLOW_FN V height(int k) const { return V::load(h.data + k * h.stride + i); }
  ROBUSTFLOW_FN V derivative(int j) const { return V::load(d.data + j * d.stride + i); }
};
// Not past the caches: of so many stores, the branches alone cost a tenth of the kernel.
template <class V, class T>
struct RqSink {
  Planes<T> w, h, d;
  std::int64_t i;
  ROBUSTFLOW_FN void width(int k, V v) const { v.store(w.data + k * w.stride + i); }
  ROBUSTFLOW_FN void height(int k, V v) const { v.store(h.data + k * h.stride + i); }
  ROBUSTFLOW_FN void derivative(int j, V v) const { v.store(d.data + j * d.stride + i); }
};

template <class T, Direction direction, int BINS>
void rq_block(const Block<T>& block, const void* config) {
  namespace op = operands::rq;
  constexpr bool inverse = is_inverse(direction);
  constexpr bool gradient = is_gradient(direction);
  using V = Pack<T, kRqPack.of(direction)>;
  const RqSpline<V, BINS> spline(*static_cast<const RqSplineConfig*>(config));
  V workspace[rq_workspace(BINS > 0 ? BINS : kMaxBins)];
  const T* x = block.in[op::kX].data;
  const Planes<const T> edges = block.in[op::kBox];
  const auto box = [&](std::int64_t i) ROBUSTFLOW_INLINE {
    const T* p = edges.data + i;
    return Box<V>{V::load(p), V::load(p + edges.stride), V::load(p + 2 * edges.stride),
                  V::load(p + 3 * edges.stride)};
  };
  const auto source = [&](std::int64_t i) ROBUSTFLOW_INLINE {
    return RqSource<V, T>{block.in[op::kWidths], block.in[op::kHeights], block.in[op::kDerivatives],
                          i};
  };
  if constexpr (gradient) {
    const T *gy = block.in[op::kGradY].data, *gl = block.in[op::kGradLogabsdet].data;
    for (std::int64_t i = 0; i < block.size; i += V::lanes) {
      fetch_ahead<V>(block, i);
      const RqSink<V, T> sink{block.out[op::kGradWidths], block.out[op::kGradHeights],
                              block.out[op::kGradDerivatives], i};
      const V gx = spline.template gradient<inverse>(V::load(x + i), box(i), source(i), workspace,
                                                     V::load(gy + i), V::load(gl + i), sink);
      put(block, gx, block.out[op::kGradX].data + i);
    }
  } else {
    transform_block<inverse, V>(
        block,
        [&](std::int64_t i) ROBUSTFLOW_INLINE {
          return spline.template transform<inverse>(V::load(x + i), box(i), source(i), workspace);
        },
        [](std::int64_t, V slope) ROBUSTFLOW_INLINE { return logarithm(slope); });
  }
}

// The usual numbers of bins, in single precision, are known to the compiler.
template <class T, Direction direction>
void rq_kernel(const Block<T>& block, const void* config) {
  if constexpr (sizeof(T) == 4) {
    switch (static_cast<const RqSplineConfig*>(config)->num_bins) {
      case 8:
        return rq_block<T, direction, 8>(block, config);
      case 10:
        return rq_block<T, direction, 10>(block, config);
      case 16:
        return rq_block<T, direction, 16>(block, config);
    }
  }
  rq_block<T, direction, 0>(block, config);
}

template <class T>
constexpr cpu::Kernels<T> kernels() {
  constexpr int lanes = Pack<T, kWidestPack>::lanes;
  static_assert(cpu::kBlockAlign % lanes == 0);
  return {
      lanes,
      {modified_rq_kernel<T, cpu::kForward>, modified_rq_kernel<T, cpu::kInverse>,
       modified_rq_kernel<T, cpu::kForwardGradient>, modified_rq_kernel<T, cpu::kInverseGradient>},
      {rq_kernel<T, cpu::kForward>, rq_kernel<T, cpu::kInverse>,
       rq_kernel<T, cpu::kForwardGradient>, rq_kernel<T, cpu::kInverseGradient>},
      {affine_kernel<T, cpu::kForward>, affine_kernel<T, cpu::kInverse>,
       affine_kernel<T, cpu::kForwardGradient>, affine_kernel<T, cpu::kInverseGradient>},
      load<T>,
      store<T>,
      add<T>,
      [] { finish_streaming(); }};
}

constexpr cpu::KernelTable kTable{kernels<float>(), kernels<double>()};

}  // namespace ROBUSTFLOW_ISA

namespace cpu {

#define ROBUSTFLOW_JOIN(a, b) a##b
#define ROBUSTFLOW_TABLE(isa) ROBUSTFLOW_JOIN(kernel_table_, isa)

const KernelTable& ROBUSTFLOW_TABLE(ROBUSTFLOW_ISA)() { return ROBUSTFLOW_ISA::kTable; }

}  // namespace cpu
}  // namespace robustflow
