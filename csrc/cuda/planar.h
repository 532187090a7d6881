// Kernels for the planar layout: each parameter is contiguous over the elements (as in NCHW
// images), so that a thread reads the parameters of a few neighbouring elements in 16-byte
// accesses.
#pragma once

#include "../math/log_product.h"
#include "cuda/index.h"
#include "cuda/parameters.h"
#include "cuda/reduce.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Threads of a block. Two blocks must fit on a multiprocessor, which leaves a thread 128 registers
// with blocks of 256 threads. Transforms with many parameters need more, so their blocks are
// smaller.
template <class Op>
inline constexpr int kPlanarThreads = Op::kParameters > 8 ? 128 : 256;
inline constexpr int kPlanarBlocks = 2;
// A thread computes at most this many vectors of a tile, and one logarithm for all their elements.
inline constexpr int kPlanarVectors = 4;
static_assert(kPlanarVectors * 16 / sizeof(bfloat16) <= LogProduct<FastFloat>::kMaxFactors);

// Elements of a vector: as many as 16 bytes of the narrower type hold.
template <class X, class P>
inline constexpr int kVector = 16 / (sizeof(X) < sizeof(P) ? sizeof(X) : sizeof(P));

// Divides the elements into tiles, each within one sample.
struct Tiling {
  std::uint32_t tiles = 0, tile = 0;  // number of tiles, elements per tile
  std::uint32_t length = 0;           // elements per sample
  Divisor per_sample;                 // tiles per sample

  struct Range {
    std::uint32_t begin, end;
  };
  ROBUSTFLOW_DEVICE Range range(std::uint32_t t) const {
    const std::uint32_t sample = per_sample.quotient(t), part = t - sample * per_sample.value;
    const std::uint32_t begin = part * tile;
    const std::uint32_t end = begin + tile < length ? begin + tile : length;
    return {sample * length + begin, sample * length + end};
  }
};

// The kernels' arguments. There is one view of parameters per group.
template <class Op>
struct PlanarTransform {
  Op op;
  Space space;
  Tiling tiling;
  View in[1 + Op::kGroups];  // x, parameters
  View out[2];               // y, logabsdet
  double* partial;  // if not null: one sum of logabsdet per tile, and out[1] is not written
};
template <class Op>
struct PlanarGradient {
  Op op;
  Space space;
  Tiling tiling;
  View in[1 + Op::kGroups + 2];  // x, parameters, cotangents of y and of logabsdet
  View out[1 + Op::kGroups];     // gradients of x and of the parameters
};

// N contiguous numbers of storage type S, in registers.
template <class S, int N>
struct Packed {
  static constexpr int kWords = N * sizeof(S) / sizeof(Words);
  Words words[kWords];

  ROBUSTFLOW_DEVICE static Packed load(const S* p) {
    Packed out;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      out.words[i] = load_words(p + i * (sizeof(Words) / sizeof(S)));
    }
    return out;
  }
  ROBUSTFLOW_DEVICE void store(S* p) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      store_words(p + i * (sizeof(Words) / sizeof(S)), words[i]);
    }
  }
  ROBUSTFLOW_DEVICE FastFloat operator[](int i) const {
    if constexpr (sizeof(S) == 4) {
      return FastFloat(from_bits(static_cast<std::int32_t>(words[i / 4].word[i % 4])));
    } else {
      const std::uint32_t word = words[i / 8].word[i % 8 / 2];
      return FastFloat(widen(S{static_cast<std::uint16_t>(i % 2 ? word >> 16 : word)}));
    }
  }
  ROBUSTFLOW_DEVICE static Packed from(const FastFloat (&v)[N]) {
    Packed out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (sizeof(S) == 4) {
        out.words[i / 4].word[i % 4] = static_cast<std::uint32_t>(to_bits(v[i].v));
      } else if (i % 2 == 0) {
        out.words[i / 8].word[i % 8 / 2] = narrow_pair(v[i].v, v[i + 1].v, S{});
      }
    }
    return out;
  }
  ROBUSTFLOW_DEVICE static Packed broadcast(S value) {
    Packed out;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(S) == 4) {
          out.words[i].word[j] = static_cast<std::uint32_t>(to_bits(value));
        } else {
          out.words[i].word[j] = value.bits * 0x10001u;
        }
      }
    }
    return out;
  }
};

// Loads a cotangent, which may be absent (zero) or the same for all N elements.
template <int N, class S>
ROBUSTFLOW_DEVICE Packed<S, N> load_cotangent(const View& view, std::uint32_t offset, int inner) {
  if (!view.data) return Packed<S, N>::broadcast(S{});
  const S* p = at<const S>(view, offset);
  if (view.stride[inner] == 0) return Packed<S, N>::broadcast(*p);
  return Packed<S, N>::load(p);
}

ROBUSTFLOW_DEVICE std::uint32_t parameter_offset(const View& view, int parameter) {
  return static_cast<std::uint32_t>(view.parameter_stride) * parameter;
}

// The parameters of N elements in their storage type, group after group.
template <class Op, class P, int N>
struct PackedParameters {
  static constexpr int kPerGroup = Op::kParameters / Op::kGroups;
  Packed<P, N> packed[Op::kParameters];

  ROBUSTFLOW_DEVICE PackedParameters(const View* groups, const std::uint32_t* offsets) {
#pragma unroll
    for (int k = 0; k < Op::kParameters; ++k) {
      const View& group = groups[k / kPerGroup];
      packed[k] = Packed<P, N>::load(
          at<const P>(group, offsets[k / kPerGroup] + parameter_offset(group, k % kPerGroup)));
    }
  }
  // The `parameter` of csrc/math/transform.h, for element j.
  struct Element {
    const PackedParameters& all;
    int j;
    ROBUSTFLOW_DEVICE FastFloat operator()(int group, int k) const {
      return all.packed[group * kPerGroup + k][j];
    }
  };
  ROBUSTFLOW_DEVICE Element element(int j) const { return {*this, j}; }
};

template <class Op, class X, class P, bool inverse>
ROBUSTFLOW_KERNEL(kPlanarThreads<Op>, kPlanarBlocks)
planar_transform(ROBUSTFLOW_PARAMETER PlanarTransform<Op> p) {
  constexpr int N = kVector<X, P>;
  for (std::uint32_t tile = block_index(); tile < p.tiling.tiles; tile += grid_blocks()) {
    const auto [begin, end] = p.tiling.range(tile);
    LogProduct<FastFloat> slopes;
    for (std::uint32_t e = begin + thread_index() * N; e < end; e += block_threads() * N) {
      const Offsets offsets(p.space, p.in, p.out, e);
      const auto x = Packed<X, N>::load(at<const X>(p.in[0], offsets.in[0]));
      const PackedParameters<Op, P, N> parameters(p.in + 1, offsets.in + 1);
      FastFloat y[N], logabsdet[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const auto point = p.op.template transform<inverse>(x[j], parameters.element(j), nullptr);
        y[j] = point.value;
        logabsdet[j] = point.slope;
      }
      Packed<X, N>::from(y).store(at<X>(p.out[0], offsets.out[0]));
      if (p.partial) {
#pragma unroll
        for (int j = 0; j < N; ++j) slopes.multiply(logabsdet[j]);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const FastFloat log = p.op.log_slope(parameters.element(j), logabsdet[j]);
          logabsdet[j] = inverse ? FastFloat(0) - log : log;
        }
        Packed<float, N>::from(logabsdet).store(at<float>(p.out[1], offsets.out[1]));
      }
    }
    if (p.partial) {
      const auto parts = slopes.parts();
      const FastFloat log = log_of_split(parts.mantissa, parts.exponent);
      const double sum = block_sum(inverse ? -log.v : log.v, shared_memory<float>());
      if (thread_index() == 0) p.partial[tile] = sum;
      barrier();
    }
  }
}

template <class Op, class X, class P, bool inverse>
ROBUSTFLOW_KERNEL(kPlanarThreads<Op>, kPlanarBlocks)
planar_gradient(ROBUSTFLOW_PARAMETER PlanarGradient<Op> p) {
  constexpr int N = kVector<X, P>, kPerGroup = Op::kParameters / Op::kGroups;
  const int inner = p.space.dims - 1;
  for (std::uint32_t tile = block_index(); tile < p.tiling.tiles; tile += grid_blocks()) {
    const auto [begin, end] = p.tiling.range(tile);
    for (std::uint32_t e = begin + thread_index() * N; e < end; e += block_threads() * N) {
      const Offsets offsets(p.space, p.in, p.out, e);
      const auto x = Packed<X, N>::load(at<const X>(p.in[0], offsets.in[0]));
      const PackedParameters<Op, P, N> parameters(p.in + 1, offsets.in + 1);
      const int gy_index = 1 + Op::kGroups, gl_index = gy_index + 1;
      const auto gy = load_cotangent<N, X>(p.in[gy_index], offsets.in[gy_index], inner);
      const auto gl = load_cotangent<N, float>(p.in[gl_index], offsets.in[gl_index], inner);
      FastFloat gx[N], by_parameter[Op::kParameters][N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        gx[j] = p.op.template gradient<inverse>(
            x[j], parameters.element(j), nullptr, gy[j], gl[j],
            [&](int group, int k, FastFloat v) { by_parameter[group * kPerGroup + k][j] = v; });
      }
      if (p.out[0].data) Packed<X, N>::from(gx).store(at<X>(p.out[0], offsets.out[0]));
#pragma unroll
      for (int k = 0; k < Op::kParameters; ++k) {
        const View& group = p.out[1 + k / kPerGroup];
        if (!group.data) continue;
        Packed<P, N>::from(by_parameter[k])
            .store(at<P>(group,
                         offsets.out[1 + k / kPerGroup] + parameter_offset(group, k % kPerGroup)));
      }
    }
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
