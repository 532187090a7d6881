// The kernels of one instruction set: a loop over a block around the formulas of csrc/math.
//
// Compiled once per instruction set, with -DROBUSTFLOW_ISA=<name>. It includes only this project's
// headers, so that the linker cannot use a function compiled for one set elsewhere in the program.
#include "kernels.h"

#include "../math/log_product.h"
#include "copies.h"
#include "simd.h"
#include "tuning.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

using cpu::Block;
using cpu::Direction;
using cpu::kCacheLine;
using cpu::kPrefetchBytes;
using cpu::Planes;

constexpr bool is_inverse(Direction d) { return d == cpu::kInverse || d == cpu::kInverseGradient; }
constexpr bool is_gradient(Direction d) { return d >= cpu::kForwardGradient; }

// The number of registers in a transform's lane, for this instruction set.
constexpr Registers registers_of(const Packs& packs) {
#if defined(__AVX512F__)
  return packs.avx512;
#elif defined(__AVX__)
  return packs.avx;
#else
  return packs.others;
#endif
}
template <class Transform, Direction direction>
inline constexpr int kRegisters =
    is_gradient(direction) ? registers_of(Transform::kPacks).gradient
                           : registers_of(Transform::kPacks).transform;

// A multiple of the number of registers in every pack.
constexpr int pack_multiple() {
  int multiple = 1;
  const auto fit = [&](const Packs& packs) {
    const Registers registers = registers_of(packs);
    while (multiple % registers.transform || multiple % registers.gradient) ++multiple;
  };
#define ROBUSTFLOW_ENTRY(name, Transform) fit(Transform::kPacks);
  ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY)
#undef ROBUSTFLOW_ENTRY
  return multiple;
}
inline constexpr int kPackMultiple = pack_multiple();

// Prefetches what a lane V will read from a plane kPrefetchBytes later.
template <class V, class T>
ROBUSTFLOW_FN void prefetch(const T* lane) {
  constexpr int kLines = (sizeof(V) + kCacheLine - 1) / kCacheLine;
  unroll<kLines>(kLines, [&](int i) ROBUSTFLOW_INLINE {
    __builtin_prefetch(reinterpret_cast<const char*>(lane) + kPrefetchBytes + i * kCacheLine);
  });
}

// Prefetches the rows of the elements from i on: as many as a lane V has.
template <class V, class T>
ROBUSTFLOW_FN void prefetch_rows(const Block<T>& block, std::int64_t i) {
  for (int k = 0; k < block.num_prefetches; ++k) {
    const cpu::Prefetch rows = block.prefetches[k];
    const char* lane = rows.data + i * rows.bytes;
    if (rows.for_write) {
      for (std::int64_t b = 0; b < V::lanes * rows.bytes; b += kCacheLine)
        __builtin_prefetch(lane + b, 1);
    } else {
      for (std::int64_t b = 0; b < V::lanes * rows.bytes; b += kCacheLine)
        __builtin_prefetch(lane + b);
    }
  }
}

template <class V, class T>
ROBUSTFLOW_FN void store_or_stream(const Block<T>& block, V v, T* to) {
  if (block.streaming) {
    v.stream(to);
  } else {
    v.store(to);
  }
}

// The logarithm of the product over all elements of all lanes.
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

// The planes of the parameters. If the number of parameters is known at compile time, an array of
// pointers to planes, else one pointer and one stride per group.
template <class Op, class T, int GROUPS, bool KNOWN = (Op::kParameters > 0)>
struct Parameters {
  Planes<T> group[GROUPS];

  ROBUSTFLOW_FN explicit Parameters(const Planes<T>* operands) {
    unroll<GROUPS>(GROUPS, [&](int g) ROBUSTFLOW_INLINE { group[g] = operands[g]; });
  }
  ROBUSTFLOW_FN T* at(int g, int k) const { return group[g].data + k * group[g].stride; }
};
template <class Op, class T, int GROUPS>
struct Parameters<Op, T, GROUPS, true> {
  static constexpr int kPerGroup = Op::kParameters / Op::kGroups;
  T* plane[Op::kParameters];

  ROBUSTFLOW_FN explicit Parameters(const Planes<T>* operands) {
    unroll<Op::kParameters>(Op::kParameters, [&](int k) ROBUSTFLOW_INLINE {
      const Planes<T> group = operands[k / kPerGroup];
      plane[k] = group.data + k % kPerGroup * group.stride;
    });
  }
  ROBUSTFLOW_FN T* at(int g, int k) const { return plane[g * kPerGroup + k]; }
};

// The parameters of the elements from i on: the `parameter` of csrc/math/transform.h.
template <class V, class Source>
struct ParametersAt {
  const Source& source;
  std::int64_t i;
  ROBUSTFLOW_FN V operator()(int g, int k) const { return V::load(source.at(g, k) + i); }
};

// Prefetches x and the parameters, if their number is known at compile time: those are few.
template <class V, class Op, class T, class Source>
ROBUSTFLOW_FN void prefetch_element(const T* x, const Source& source, std::int64_t i) {
  if constexpr (Op::kParameters > 0) {
    prefetch<V>(x + i);
    unroll<Op::kParameters>(Op::kParameters,
                            [&](int k) ROBUSTFLOW_INLINE { prefetch<V>(source.plane[k] + i); });
  }
}

// The length of the workspace, which is an array and so has at least one lane.
template <class Op>
inline constexpr int kWorkspace = Op::kMaxWorkspace > 0 ? Op::kMaxWorkspace : 1;

// y and the log-determinant.
template <bool inverse, class Op, class T>
ROBUSTFLOW_FN void transform_block(const Block<T>& block, const Op& op) {
  using V = typename Op::Lane;
  const T* x = block.in[0].data;
  const Parameters<Op, const T, Op::kGroups> source(block.in + 1);
  T *y = block.out[0].data, *logabsdet = block.out[1].data;
  V workspace[kWorkspace<Op>];
  LogProduct<V> product;
  int factors = 0;
  for (std::int64_t i = 0; i < block.size; i += V::lanes) {
    prefetch_rows<V>(block, i);
    prefetch_element<V, Op>(x, source, i);
    const ParametersAt<V, decltype(source)> parameter{source, i};
    auto out = op.template transform<inverse>(V::load(x + i), parameter, workspace);
    store_or_stream(block, out.value, y + i);
    if (logabsdet) {
      const V log = op.log_slope(parameter, out.slope);
      store_or_stream(block, inverse ? V(0) - log : log, logabsdet + i);
      continue;
    }
    if (i + V::lanes > block.size) {  // elements after the end of the block do not count
      const auto counts = V::count_from(0) < V(double(block.size - i));
      out.slope = select(counts, out.slope, V(1));
    }
    product.multiply(out.slope);
    if (++factors == product.kMaxFactors) {
      product.fold();
      factors = 0;
    }
  }
  if (!logabsdet) *block.logabsdet_sum += inverse ? -sum_of(product) : sum_of(product);
}

// The gradients of x and of the first GROUPS groups of parameters.
template <bool inverse, int GROUPS, class Op, class T>
ROBUSTFLOW_FN void gradient_block(const Block<T>& block, const Op& op) {
  using V = typename Op::Lane;
  const T* x = block.in[0].data;
  const Parameters<Op, const T, Op::kGroups> source(block.in + 1);
  const T *gy = block.in[1 + Op::kGroups].data, *gl = block.in[2 + Op::kGroups].data;
  T* gx = block.out[0].data;
  const Parameters<Op, T, GROUPS> gradients(block.out + 1);
  V workspace[kWorkspace<Op>];
  for (std::int64_t i = 0; i < block.size; i += V::lanes) {
    prefetch_rows<V>(block, i);
    prefetch_element<V, Op>(x, source, i);
    if constexpr (Op::kParameters > 0) prefetch<V>(gy + i);
    const V by_x = op.template gradient<inverse>(
        V::load(x + i), ParametersAt<V, decltype(source)>{source, i}, workspace, V::load(gy + i),
        V::load(gl + i), [&](int g, int k, V v) ROBUSTFLOW_INLINE {
          // With many parameters, the branch between store and stream costs a tenth of the kernel.
          if constexpr (Op::kParameters > 0) {
            store_or_stream(block, v, gradients.at(g, k) + i);
          } else {
            v.store(gradients.at(g, k) + i);
          }
        });
    store_or_stream(block, by_x, gx + i);
  }
}

template <class T, Direction direction, int GROUPS, class Op>
void run_block(const Block<T>& block, const void* config) {
  const Op op(*static_cast<const typename Op::Config*>(config));
  if constexpr (is_gradient(direction)) {
    gradient_block<is_inverse(direction), GROUPS>(block, op);
  } else {
    transform_block<is_inverse(direction)>(block, op);
  }
}

template <class T, Direction direction, class Transform>
void kernel(const Block<T>& block, const void* config) {
  using V = Pack<T, kRegisters<Transform, direction>>;
  Transform::template with_op<V>(
      *static_cast<const typename Transform::Config*>(config),
      [&]<class Op>() { run_block<T, direction, Transform::kGroups, Op>(block, config); });
}

template <class T>
constexpr cpu::Kernels<T> kernels() {
  constexpr int lanes = Pack<T, kPackMultiple>::lanes;
  static_assert(cpu::kBlockAlign % lanes == 0);
  return {lanes,
          {
#define ROBUSTFLOW_ENTRY(name, Transform)                                    \
  {kernel<T, cpu::kForward, Transform>, kernel<T, cpu::kInverse, Transform>, \
   kernel<T, cpu::kForwardGradient, Transform>, kernel<T, cpu::kInverseGradient, Transform>},
              ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY)
#undef ROBUSTFLOW_ENTRY
          },
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
