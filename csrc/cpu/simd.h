// The lanes of a CPU: packs of SIMD registers, written with the compilers' vector extensions.
//
// A single chain of dependent operations would wait for the latency of each. So a pack has several
// independent registers; the transform chooses how many (kPacks).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../math/lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
inline constexpr int kRegisterBytes = 32;
#else
inline constexpr int kRegisterBytes = 16;
#endif

template <class T>
inline constexpr int kRegisterLanes = kRegisterBytes / sizeof(T);

template <class T>
struct Register {
  typedef T type __attribute__((vector_size(kRegisterBytes)));
  typedef typename ieee<T>::integer bits __attribute__((vector_size(kRegisterBytes)));
};
template <class T>
using vec = typename Register<T>::type;
template <class T>
using bitvec = typename Register<T>::bits;

// Instructions for which vector extensions have no operator. max and min return their second
// argument if either is NaN; a comparison and a selection would be two instructions. Streaming
// stores bypass the caches and need aligned memory; finish_streaming() must run before another
// thread reads them.
#if defined(__AVX512F__)
#define ROBUSTFLOW_INTRINSIC(NAME, TYPE) _mm512_##NAME##_##TYPE
#elif defined(__AVX__)
#define ROBUSTFLOW_INTRINSIC(NAME, TYPE) _mm256_##NAME##_##TYPE
#elif defined(__SSE2__)
#define ROBUSTFLOW_INTRINSIC(NAME, TYPE) _mm_##NAME##_##TYPE
#endif
#if defined(ROBUSTFLOW_INTRINSIC)
ROBUSTFLOW_FN vec<float> register_sqrt(vec<float> v) { return ROBUSTFLOW_INTRINSIC(sqrt, ps)(v); }
ROBUSTFLOW_FN vec<double> register_sqrt(vec<double> v) { return ROBUSTFLOW_INTRINSIC(sqrt, pd)(v); }
ROBUSTFLOW_FN vec<float> register_max(vec<float> a, vec<float> b) {
  return ROBUSTFLOW_INTRINSIC(max, ps)(a, b);
}
ROBUSTFLOW_FN vec<double> register_max(vec<double> a, vec<double> b) {
  return ROBUSTFLOW_INTRINSIC(max, pd)(a, b);
}
ROBUSTFLOW_FN vec<float> register_min(vec<float> a, vec<float> b) {
  return ROBUSTFLOW_INTRINSIC(min, ps)(a, b);
}
ROBUSTFLOW_FN vec<double> register_min(vec<double> a, vec<double> b) {
  return ROBUSTFLOW_INTRINSIC(min, pd)(a, b);
}
ROBUSTFLOW_FN void register_stream(float* p, vec<float> v) {
  ROBUSTFLOW_INTRINSIC(stream, ps)(p, v);
}
ROBUSTFLOW_FN void register_stream(double* p, vec<double> v) {
  ROBUSTFLOW_INTRINSIC(stream, pd)(p, v);
}
ROBUSTFLOW_FN void finish_streaming() { _mm_sfence(); }
#else
ROBUSTFLOW_FN vec<float> register_sqrt(vec<float> v) {
  for (int i = 0; i < kRegisterLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
ROBUSTFLOW_FN vec<double> register_sqrt(vec<double> v) {
  for (int i = 0; i < kRegisterLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}
template <class T>
ROBUSTFLOW_FN void register_stream(T* p, vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
ROBUSTFLOW_FN void finish_streaming() {}
template <class R>
ROBUSTFLOW_FN R register_max(R a, R b) {
  return a > b ? a : b;
}
template <class R>
ROBUSTFLOW_FN R register_min(R a, R b) {
  return a < b ? a : b;
}
#endif

// a b + c, a b - c and c - a b, with one rounding.
#if defined(__FMA__)
#define ROBUSTFLOW_FUSED(NAME)                                                             \
  ROBUSTFLOW_FN vec<float> register_##NAME(vec<float> a, vec<float> b, vec<float> c) {     \
    return ROBUSTFLOW_INTRINSIC(NAME, ps)(a, b, c);                                        \
  }                                                                                        \
  ROBUSTFLOW_FN vec<double> register_##NAME(vec<double> a, vec<double> b, vec<double> c) { \
    return ROBUSTFLOW_INTRINSIC(NAME, pd)(a, b, c);                                        \
  }
ROBUSTFLOW_FUSED(fmadd)
ROBUSTFLOW_FUSED(fmsub)
ROBUSTFLOW_FUSED(fnmadd)
#undef ROBUSTFLOW_FUSED
#else  // one rounding or two, as the compiler chooses
template <class R>
ROBUSTFLOW_FN R register_fmadd(R a, R b, R c) {
  return a * b + c;
}
template <class R>
ROBUSTFLOW_FN R register_fmsub(R a, R b, R c) {
  return a * b - c;
}
template <class R>
ROBUSTFLOW_FN R register_fnmadd(R a, R b, R c) {
  return c - a * b;
}
#endif
#undef ROBUSTFLOW_INTRINSIC

// A pack is a recursive list (head, tail), not an array, so that compilers keep it in registers.
template <class T, int COUNT>
struct PackMask {
  bitvec<T> head;
  PackMask<T, COUNT - 1> tail;
};
template <class T>
struct PackMask<T, 1> {
  bitvec<T> head;
};

template <class T, int COUNT>
struct Pack;

template <class T, int COUNT>
struct PackTail {
  Pack<T, COUNT - 1> tail;
};
template <class T>
struct PackTail<T, 1> {};

template <class T, int COUNT>
struct Pack : PackTail<T, COUNT> {
  using scalar = T;
  using mask = PackMask<T, COUNT>;
  using integer = PackMask<T, COUNT>;
  static constexpr int count = COUNT;
  static constexpr int lanes = COUNT * kRegisterLanes<T>;

  vec<T> head;

  Pack() = default;
  ROBUSTFLOW_FN Pack(double value) : head(vec<T>{} + static_cast<T>(value)) {
    if constexpr (COUNT > 1) this->tail = Pack<T, COUNT - 1>(value);
  }

  ROBUSTFLOW_FN static Pack load(const T* p) {
    Pack out;
    __builtin_memcpy(&out.head, p, kRegisterBytes);
    if constexpr (COUNT > 1) out.tail = Pack<T, COUNT - 1>::load(p + kRegisterLanes<T>);
    return out;
  }
  ROBUSTFLOW_FN void store(T* p) const {
    __builtin_memcpy(p, &head, kRegisterBytes);
    if constexpr (COUNT > 1) this->tail.store(p + kRegisterLanes<T>);
  }
  ROBUSTFLOW_FN void stream(T* p) const {
    register_stream(p, head);
    if constexpr (COUNT > 1) this->tail.stream(p + kRegisterLanes<T>);
  }
  // first, first + 1, first + 2, ...
  ROBUSTFLOW_FN static Pack count_from(int first) {
    Pack out;
    for (int i = 0; i < kRegisterLanes<T>; ++i) out.head[i] = static_cast<T>(first + i);
    if constexpr (COUNT > 1) {
      out.tail = Pack<T, COUNT - 1>::count_from(first + kRegisterLanes<T>);
    }
    return out;
  }

  // A product that can still become part of a fused multiply-add. The source code determines what
  // is fused: in a * b + c the product is; in V(a * b) + c it is not; in a * b + c * d the first
  // one is. (A compiler could choose differently for two registers of a pack, and an element's bits
  // would depend on its position.)
  struct Product {
    Pack a, b;

    ROBUSTFLOW_FN operator Pack() const {
      Pack out;
      out.head = a.head * b.head;
      if constexpr (COUNT > 1) out.tail = typename Pack<T, COUNT - 1>::Product{a.tail, b.tail};
      return out;
    }
  };
  ROBUSTFLOW_FN friend Product operator*(const Pack& a, const Pack& b) { return {a, b}; }

#define ROBUSTFLOW_PACK_OPERATOR(OP)                                    \
  ROBUSTFLOW_FN friend Pack operator OP(const Pack& a, const Pack& b) { \
    Pack out;                                                           \
    out.head = a.head OP b.head;                                        \
    if constexpr (COUNT > 1) out.tail = a.tail OP b.tail;               \
    return out;                                                         \
  }
  ROBUSTFLOW_PACK_OPERATOR(+)
  ROBUSTFLOW_PACK_OPERATOR(-)
  ROBUSTFLOW_PACK_OPERATOR(/)
#undef ROBUSTFLOW_PACK_OPERATOR

#define ROBUSTFLOW_PACK_FUSED(NAME)                                                       \
  ROBUSTFLOW_FN static Pack NAME(const Pack& a, const Pack& b, const Pack& c) {           \
    Pack out;                                                                             \
    out.head = register_##NAME(a.head, b.head, c.head);                                   \
    if constexpr (COUNT > 1) out.tail = Pack<T, COUNT - 1>::NAME(a.tail, b.tail, c.tail); \
    return out;                                                                           \
  }
  ROBUSTFLOW_PACK_FUSED(fmadd)
  ROBUSTFLOW_PACK_FUSED(fmsub)
  ROBUSTFLOW_PACK_FUSED(fnmadd)
#undef ROBUSTFLOW_PACK_FUSED
  ROBUSTFLOW_FN friend Pack operator+(const Product& p, const Pack& c) {
    return fmadd(p.a, p.b, c);
  }
  ROBUSTFLOW_FN friend Pack operator+(const Pack& c, const Product& p) {
    return fmadd(p.a, p.b, c);
  }
  ROBUSTFLOW_FN friend Pack operator+(const Product& p, const Product& q) {
    return fmadd(p.a, p.b, q);
  }
  ROBUSTFLOW_FN friend Pack operator-(const Product& p, const Pack& c) {
    return fmsub(p.a, p.b, c);
  }
  ROBUSTFLOW_FN friend Pack operator-(const Pack& c, const Product& p) {
    return fnmadd(p.a, p.b, c);
  }
  ROBUSTFLOW_FN friend Pack operator-(const Product& p, const Product& q) {
    return fmsub(p.a, p.b, q);
  }

#define ROBUSTFLOW_PACK_COMPARISON(OP)                                  \
  ROBUSTFLOW_FN friend mask operator OP(const Pack& a, const Pack& b) { \
    mask out;                                                           \
    out.head = a.head OP b.head;                                        \
    if constexpr (COUNT > 1) out.tail = a.tail OP b.tail;               \
    return out;                                                         \
  }
  ROBUSTFLOW_PACK_COMPARISON(<)
  ROBUSTFLOW_PACK_COMPARISON(<=)
  ROBUSTFLOW_PACK_COMPARISON(>)
  ROBUSTFLOW_PACK_COMPARISON(>=)
  ROBUSTFLOW_PACK_COMPARISON(==)
#undef ROBUSTFLOW_PACK_COMPARISON
};

// PackMask is also the type of a pack of integers.
template <class T, int COUNT>
ROBUSTFLOW_FN PackMask<T, COUNT> operator+(const PackMask<T, COUNT>& a,
                                           const PackMask<T, COUNT>& b) {
  PackMask<T, COUNT> out;
  out.head = a.head + b.head;
  if constexpr (COUNT > 1) out.tail = a.tail + b.tail;
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN PackMask<T, COUNT> operator|(const PackMask<T, COUNT>& a,
                                           const PackMask<T, COUNT>& b) {
  PackMask<T, COUNT> out;
  out.head = a.head | b.head;
  if constexpr (COUNT > 1) out.tail = a.tail | b.tail;
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN PackMask<T, COUNT> operator!(const PackMask<T, COUNT>& a) {
  PackMask<T, COUNT> out;
  out.head = ~a.head;
  if constexpr (COUNT > 1) out.tail = !a.tail;
  return out;
}

template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> select(const PackMask<T, COUNT>& mask, const Pack<T, COUNT>& yes,
                                    const Pack<T, COUNT>& no) {
  Pack<T, COUNT> out;
  out.head = mask.head ? yes.head : no.head;
  if constexpr (COUNT > 1) out.tail = select(mask.tail, yes.tail, no.tail);
  return out;
}

template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> max(const Pack<T, COUNT>& limit, const Pack<T, COUNT>& v) {
  Pack<T, COUNT> out;
  out.head = register_max(limit.head, v.head);
  if constexpr (COUNT > 1) out.tail = max(limit.tail, v.tail);
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> min(const Pack<T, COUNT>& limit, const Pack<T, COUNT>& v) {
  Pack<T, COUNT> out;
  out.head = register_min(limit.head, v.head);
  if constexpr (COUNT > 1) out.tail = min(limit.tail, v.tail);
  return out;
}

template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> absolute(const Pack<T, COUNT>& v) {
  using integer = typename ieee<T>::integer;
  constexpr auto all_but_sign = static_cast<integer>(~(integer(1) << (8 * sizeof(T) - 1)));
  Pack<T, COUNT> out;
  out.head = (vec<T>)((bitvec<T>)v.head & all_but_sign);
  if constexpr (COUNT > 1) out.tail = absolute(v.tail);
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> square_root(const Pack<T, COUNT>& v) {
  Pack<T, COUNT> out;
  out.head = register_sqrt(v.head);
  if constexpr (COUNT > 1) out.tail = square_root(v.tail);
  return out;
}

template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> power_of_two(const Pack<T, COUNT>& shifted) {
  Pack<T, COUNT> out;
  out.head = (vec<T>)((bitvec<T>)shifted.head << ieee<T>::mantissa_bits);
  if constexpr (COUNT > 1) out.tail = power_of_two(shifted.tail);
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN void split(const Pack<T, COUNT>& v, Pack<T, COUNT>& mantissa,
                         Pack<T, COUNT>& exponent) {
  // Adding the bits of round_to_integer converts a small integer to floating point. AVX2 has no
  // such instruction for 64 bits.
  const bitvec<T> magic = (bitvec<T>)(vec<T>{} + ieee<T>::round_to_integer);
  const bitvec<T> e = ((bitvec<T>)v.head - ieee<T>::sqrt_half) >> ieee<T>::mantissa_bits;
  exponent.head = (vec<T>)(e + magic) - ieee<T>::round_to_integer;
  mantissa.head = (vec<T>)((bitvec<T>)v.head - (e << ieee<T>::mantissa_bits));
  if constexpr (COUNT > 1) split(v.tail, mantissa.tail, exponent.tail);
}
template <class T, int COUNT>
ROBUSTFLOW_FN Pack<T, COUNT> mantissa_field(const Pack<T, COUNT>& v) {
  constexpr auto kField = (typename ieee<T>::integer(1) << ieee<T>::mantissa_bits) - 1;
  Pack<T, COUNT> out;
  out.head = (vec<T>)(((bitvec<T>)v.head & kField) | ieee<T>::one);
  if constexpr (COUNT > 1) out.tail = mantissa_field(v.tail);
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN PackMask<T, COUNT> exponent_field(const Pack<T, COUNT>& v) {
  PackMask<T, COUNT> out;
  out.head = (bitvec<T>)v.head >> ieee<T>::mantissa_bits;
  if constexpr (COUNT > 1) out.tail = exponent_field(v.tail);
  return out;
}
template <class T, int COUNT>
ROBUSTFLOW_FN void convert(const PackMask<T, COUNT>& n, Pack<T, COUNT>& out) {
  for (int i = 0; i < kRegisterLanes<T>; ++i) out.head[i] = static_cast<T>(n.head[i]);
  if constexpr (COUNT > 1) convert(n.tail, out.tail);
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
