// Copies between strided memory of any dtype and planes of the compute type (kernels.h).
#pragma once

#include "../math/half.h"
#include "kernels.h"
#include "simd.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

using cpu::Strided;

ROBUSTFLOW_FN double widen(double v) { return v; }
ROBUSTFLOW_FN float widen(float v) { return v; }
ROBUSTFLOW_FN float widen(float16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  return widen_portably(v);
#endif
}

ROBUSTFLOW_FN void narrow(double v, double& out) { out = v; }
ROBUSTFLOW_FN void narrow(double v, float& out) { out = static_cast<float>(v); }
ROBUSTFLOW_FN void narrow(float v, float& out) { out = v; }
ROBUSTFLOW_FN void narrow(float v, bfloat16& out) { out = narrow_portably(v, out); }
ROBUSTFLOW_FN void narrow(float v, float16& out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
  out = narrow_portably(v, out);
#endif
}
// A float64 computation may have 16-bit tensors. (A float32 one has no float64 tensors.)
template <class Half>
ROBUSTFLOW_FN void narrow(double v, Half& out) {
  narrow(static_cast<float>(v), out);
}

typedef float float8 __attribute__((vector_size(32)));

template <class S>
ROBUSTFLOW_FN float8 load8(const S* p) {
  float8 v;
  for (int i = 0; i < 8; ++i) v[i] = widen(p[i]);
  return v;
}
template <>
ROBUSTFLOW_FN float8 load8(const float* p) {
  float8 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class S>
ROBUSTFLOW_FN void store8(float8 v, S* p) {
  for (int i = 0; i < 8; ++i) narrow(v[i], p[i]);
}
template <>
ROBUSTFLOW_FN void store8(float8 v, float* p) {
  __builtin_memcpy(p, &v, sizeof v);
}
#if defined(__F16C__)
template <>
ROBUSTFLOW_FN float8 load8(const float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <>
ROBUSTFLOW_FN void store8(float8 v, float16* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// Transposes an 8 x 8 matrix.
ROBUSTFLOW_FN void transpose8(float8 r[8]) {
  float8 a[8], b[8];
  for (int i = 0; i < 4; ++i) {  // pairs of rows
    a[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {  // fours
    b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    b[i + 2] = __builtin_shufflevector(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 3] = __builtin_shufflevector(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {  // halves
    r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// deinterleave: of the 16 numbers in a and b, those at even positions go to a, the others to b.
// interleave is the inverse.
ROBUSTFLOW_FN void deinterleave(float8& a, float8& b) {
  const float8 even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  b = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  a = even;
}
ROBUSTFLOW_FN void interleave(float8& a, float8& b) {
  const float8 first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  b = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  a = first;
}

// rows_to_columns: registers that hold eight contiguous rows of two (or four) numbers then hold one
// column each. columns_to_rows is the inverse.
ROBUSTFLOW_FN void rows_to_columns(float8 (&r)[2]) { deinterleave(r[0], r[1]); }
ROBUSTFLOW_FN void columns_to_rows(float8 (&c)[2]) { interleave(c[0], c[1]); }
ROBUSTFLOW_FN void rows_to_columns(float8 (&r)[4]) {
  deinterleave(r[0], r[1]);
  deinterleave(r[2], r[3]);
  deinterleave(r[0], r[2]);  // columns 0 and 2
  deinterleave(r[1], r[3]);  // columns 1 and 3
}
ROBUSTFLOW_FN void columns_to_rows(float8 (&c)[4]) {
  interleave(c[1], c[3]);
  interleave(c[0], c[2]);
  interleave(c[2], c[3]);
  interleave(c[0], c[1]);
}

// For contiguous rows of COLUMNS numbers. Copies a multiple of eight rows; returns how many.
template <int COLUMNS, class S>
ROBUSTFLOW_FN std::int64_t load_short_rows(const S* from, std::int64_t size, float* to,
                                           std::int64_t to_stride) {
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    float8 r[COLUMNS];
    const S* rows = from + i * COLUMNS;
    unroll<COLUMNS>(COLUMNS, [&](int k) ROBUSTFLOW_INLINE { r[k] = load8(rows + 8 * k); });
    rows_to_columns(r);
    unroll<COLUMNS>(COLUMNS,
                    [&](int k) ROBUSTFLOW_INLINE { store8(r[k], to + k * to_stride + i); });
  }
  return i;
}
template <int COLUMNS, class S>
ROBUSTFLOW_FN std::int64_t store_short_rows(const float* from, std::int64_t from_stride,
                                            std::int64_t size, S* to) {
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    float8 c[COLUMNS];
    unroll<COLUMNS>(COLUMNS,
                    [&](int k) ROBUSTFLOW_INLINE { c[k] = load8(from + k * from_stride + i); });
    columns_to_rows(c);
    unroll<COLUMNS>(COLUMNS,
                    [&](int k) ROBUSTFLOW_INLINE { store8(c[k], to + i * COLUMNS + 8 * k); });
  }
  return i;
}

// Copies rows to planes: column k of the rows becomes plane k. Works on 8 x 8 blocks in registers.
// Reading eight numbers may go beyond a row's end, so the last rows are copied number by number.
template <class S>
ROBUSTFLOW_FN void load_rows(const S* from, std::int64_t stride, int columns, std::int64_t size,
                             float* to, std::int64_t to_stride) {
  const std::int64_t end = (size - 1) * stride + columns;
  std::int64_t i = 0;
  if (stride == columns && columns == 2) i = load_short_rows<2>(from, size, to, to_stride);
  if (stride == columns && columns == 4) i = load_short_rows<4>(from, size, to, to_stride);
  for (; i + 8 <= size; i += 8) {
    for (int offset = 0; offset < columns; offset += 8) {
      // With at least eight columns, the last block begins early enough to end with the last
      // column.
      const int k = offset + 8 > columns && columns >= 8 ? columns - 8 : offset;
      if ((i + 7) * stride + k + 8 > end) goto rest;
      float8 r[8];
      const S* row = from + i * stride + k;
      float* out = to + k * to_stride + i;
      unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE { r[j] = load8(row + j * stride); });
      transpose8(r);
      if (columns - k >= 8) {
        unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE { store8(r[j], out + j * to_stride); });
      } else {
        unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE {
          if (k + j < columns) store8(r[j], out + j * to_stride);
        });
      }
    }
  }
rest:
  for (; i < size; ++i)
    for (int k = 0; k < columns; ++k) to[k * to_stride + i] = widen(from[i * stride + k]);
}

// Copies planes to rows. Where writing eight numbers goes beyond a row's end, the next row, written
// later, overwrites the excess.
template <class S>
ROBUSTFLOW_FN void store_rows(const float* from, std::int64_t from_stride, int columns,
                              std::int64_t size, S* to, std::int64_t stride) {
  std::int64_t i = 0;
  if (stride == columns && columns == 2) i = store_short_rows<2>(from, from_stride, size, to);
  if (stride == columns && columns == 4) i = store_short_rows<4>(from, from_stride, size, to);
  if (columns >= 8 || stride == columns) {
    const std::int64_t end = (size - 1) * stride + columns;
    for (; i + 8 <= size; i += 8) {
      if (columns < 8 && (i + 7) * stride + 8 > end) break;
      for (int offset = 0; offset < columns; offset += 8) {
        const int k = offset + 8 > columns && columns >= 8 ? columns - 8 : offset;
        float8 r[8];
        const float* in = from + k * from_stride + i;
        S* row = to + i * stride + k;
        if (columns - k >= 8) {
          unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE { r[j] = load8(in + j * from_stride); });
        } else {
          unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE {
            r[j] = k + j < columns ? load8(in + j * from_stride) : float8{};
          });
        }
        transpose8(r);
        unroll<8>(8, [&](int j) ROBUSTFLOW_INLINE { store8(r[j], row + j * stride); });
      }
    }
  }
  for (; i < size; ++i)
    for (int k = 0; k < columns; ++k) narrow(from[k * from_stride + i], to[i * stride + k]);
}

// Copies bytes to aligned memory with streaming stores; a remainder smaller than a register is
// stored normally.
ROBUSTFLOW_FN void stream_bytes(const char* from, std::int64_t size, char* to) {
  std::int64_t i = 0;
  for (; i + kRegisterBytes <= size; i += kRegisterBytes) {
    vec<float> v;
    __builtin_memcpy(&v, from + i, kRegisterBytes);
    register_stream(reinterpret_cast<float*>(to + i), v);
  }
  __builtin_memcpy(to + i, from + i, size - i);
}

// Copies planes to contiguous rows with streaming stores, kStreamedRows at a time: that many rows
// fill whole cache lines, whatever their length.
inline constexpr int kStreamedRows = 32, kMaxStreamedRowBytes = 512;

template <class S>
ROBUSTFLOW_FN bool can_stream_rows(int columns, const S* to, std::int64_t stride) {
  return stride == columns && columns * sizeof(S) <= kMaxStreamedRowBytes &&
         reinterpret_cast<std::uintptr_t>(to) % cpu::kCacheLine == 0;
}
template <class S>
ROBUSTFLOW_FN void stream_rows(const float* from, std::int64_t from_stride, int columns,
                               std::int64_t size, S* to) {
  alignas(cpu::kCacheLine) S rows[kStreamedRows * kMaxStreamedRowBytes / sizeof(S)];
  for (std::int64_t i = 0; i < size; i += kStreamedRows) {
    const std::int64_t count = size - i < kStreamedRows ? size - i : kStreamedRows;
    store_rows(from + i, from_stride, columns, count, rows, columns);
    stream_bytes(reinterpret_cast<const char*>(rows), count * columns * sizeof(S),
                 reinterpret_cast<char*>(to + i * columns));
  }
}

template <class S, class T>
ROBUSTFLOW_FN void load_as(const Strided& from, std::int64_t size, T* to, std::int64_t to_stride) {
  const S* data = static_cast<const S*>(from.data);
  if constexpr (sizeof(T) == 4) {
    if (from.plane_stride == 1 && from.num_planes > 1 && from.stride >= from.num_planes) {
      return load_rows(data, from.stride, from.num_planes, size, to, to_stride);
    }
  }
  for (int k = 0; k < from.num_planes; ++k) {
    const S* plane = data + k * from.plane_stride;
    T* out = to + k * to_stride;
    if (from.stride == 1) {
      std::int64_t i = 0;
      if constexpr (sizeof(T) == 4) {
        for (; i + 8 <= size; i += 8) store8(load8(plane + i), out + i);
      }
      for (; i < size; ++i) out[i] = widen(plane[i]);
    } else {
      for (std::int64_t i = 0; i < size; ++i) out[i] = widen(plane[i * from.stride]);
    }
  }
}

template <class S, class T>
ROBUSTFLOW_FN void store_as(const T* from, std::int64_t from_stride, std::int64_t size,
                            const Strided& to, bool streaming) {
  S* data = static_cast<S*>(to.data);
  if constexpr (sizeof(T) == 4) {
    if (to.plane_stride == 1 && to.num_planes > 1) {
      if (streaming && can_stream_rows(to.num_planes, data, to.stride)) {
        return stream_rows(from, from_stride, to.num_planes, size, data);
      }
      return store_rows(from, from_stride, to.num_planes, size, data, to.stride);
    }
  }
  for (int k = 0; k < to.num_planes; ++k) {
    S* plane = data + k * to.plane_stride;
    const T* in = from + k * from_stride;
    if (to.stride == 1) {
      std::int64_t i = 0;
      if constexpr (sizeof(T) == 4) {
        for (; i + 8 <= size; i += 8) store8(load8(in + i), plane + i);
      }
      for (; i < size; ++i) narrow(in[i], plane[i]);
    } else {
      for (std::int64_t i = 0; i < size; ++i) narrow(in[i], plane[i * to.stride]);
    }
  }
}

template <class T>
void load(const Strided& from, std::int64_t size, T* to, std::int64_t to_stride) {
  switch (from.dtype) {
    case DType::float64:
      return load_as<double>(from, size, to, to_stride);
    case DType::float32:
      return load_as<float>(from, size, to, to_stride);
    case DType::bfloat16:
      return load_as<bfloat16>(from, size, to, to_stride);
    case DType::float16:
      return load_as<float16>(from, size, to, to_stride);
  }
}

template <class T>
void store(const T* from, std::int64_t from_stride, std::int64_t size, const Strided& to,
           bool streaming) {
  switch (to.dtype) {
    case DType::float64:
      if constexpr (sizeof(T) == 8) store_as<double>(from, from_stride, size, to, streaming);
      return;
    case DType::float32:
      return store_as<float>(from, from_stride, size, to, streaming);
    case DType::bfloat16:
      return store_as<bfloat16>(from, from_stride, size, to, streaming);
    case DType::float16:
      return store_as<float16>(from, from_stride, size, to, streaming);
  }
}

template <class T>
void add(const T* from, std::int64_t size, double* to) {
  for (std::int64_t i = 0; i < size; ++i) to[i] += from[i];
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
