// Products with a triangular matrix and its inverse, on blocks of samples: [feature][sample].
#pragma once

#include <cstdint>
#include <type_traits>

namespace robustflow {

// Samples in a block. Each is computed by itself, so a short block's other samples do not matter.
constexpr int64_t kBlockSamples = 64;

namespace triangle {

// 16 bytes of samples, which every instruction set here has.
template <class T>
struct Register {
  static constexpr int64_t kLanes = 16 / static_cast<int64_t>(sizeof(T));
  typedef T Lanes __attribute__((vector_size(16)));
  Lanes lanes;

  // One number in every lane. Subtracting 0, unlike adding it, changes nothing.
  static Register broadcast(T number) { return {number - Lanes{}}; }
  static Register load(const T* from, int64_t index) {
    Register out;
    __builtin_memcpy(&out.lanes, from + index * kLanes, sizeof out.lanes);
    return out;
  }
  void store(T* to, int64_t index) const {
    __builtin_memcpy(to + index * kLanes, &lanes, sizeof lanes);
  }
  Register operator+(Register other) const { return {lanes + other.lanes}; }
  Register operator*(Register other) const { return {lanes * other.lanes}; }
  void operator+=(Register other) { lanes += other.lanes; }
  double total() const {
    double sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
  }
};

// Adds sign * sum_k coefficients[k * step] * columns[k] to a column that is none of these.
template <class T>
void add_combination(T sign, const T* coefficients, int64_t step, int64_t count, const T* columns,
                     T* to) {
  constexpr int64_t kRegisters = 8;  // enough sums side by side to hide an addition's latency
  constexpr int64_t kLanes = kRegisters * Register<T>::kLanes;
  for (int64_t s = 0; s < kBlockSamples; s += kLanes) {
    Register<T> sums[kRegisters] = {};
    const T* from = columns + s;
    const T* coefficient = coefficients;
    for (int64_t k = 0; k < count; ++k, from += kBlockSamples, coefficient += step) {
      const Register<T> factor = Register<T>::broadcast(*coefficient);
      for (int64_t r = 0; r < kRegisters; ++r) sums[r] += factor * Register<T>::load(from, r);
    }
    for (int64_t r = 0; r < kRegisters; ++r)
      (Register<T>::load(to + s, r) + Register<T>::broadcast(sign) * sums[r]).store(to + s, r);
  }
}

// Adds the sum over samples of g * x[j] to sums[j], for first <= j < end.
template <class T>
void add_dots(const T* g, const T* x, int64_t first, int64_t end, double* sums) {
  constexpr int64_t kColumnsAtOnce = 4;
  const auto add_columns = [&](int64_t j, auto column_count) {
    constexpr int64_t kCount = column_count;
    Register<T> totals[kCount] = {};
    for (int64_t s = 0; s < kBlockSamples / Register<T>::kLanes; ++s) {
      const Register<T> left = Register<T>::load(g, s);
      for (int64_t i = 0; i < kCount; ++i)
        totals[i] += left * Register<T>::load(x + (j + i) * kBlockSamples, s);
    }
    for (int64_t i = 0; i < kCount; ++i) sums[j + i] += totals[i].total();
  };
  int64_t j = first;
  for (; j + kColumnsAtOnce <= end; j += kColumnsAtOnce)
    add_columns(j, std::integral_constant<int64_t, kColumnsAtOnce>{});
  for (; j < end; ++j) add_columns(j, std::integral_constant<int64_t, 1>{});
}

}  // namespace triangle

// One triangle of a square matrix. Its diagonal is 1 where `unit`, whatever the matrix holds there.
template <class T>
struct Triangle {
  const T* matrix;
  int64_t size, row_step, column_step;
  bool upper, unit;

  Triangle transposed() const { return {matrix, size, column_step, row_step, !upper, unit}; }

  // columns = M columns. A row reads no column that is already overwritten.
  void multiply(T* columns) const {
    for (int64_t k = 0; k < size; ++k) {
      const int64_t row = upper ? k : size - 1 - k;
      if (!unit) {
        T* to = columns + row * kBlockSamples;
        const T factor = diagonal(row);
        for (int64_t s = 0; s < kBlockSamples; ++s) to[s] *= factor;
      }
      add_others(T(1), row, columns);
    }
  }

  // columns = M^-1 columns, by substitution.
  void solve(T* columns) const {
    for (int64_t k = 0; k < size; ++k) {
      const int64_t row = upper ? size - 1 - k : k;
      add_others(T(-1), row, columns);
      if (!unit) {
        T* to = columns + row * kBlockSamples;
        const T divisor = diagonal(row);
        for (int64_t s = 0; s < kBlockSamples; ++s) to[s] /= divisor;
      }
    }
  }

 private:
  T diagonal(int64_t row) const { return matrix[row * (row_step + column_step)]; }

  void add_others(T sign, int64_t row, T* columns) const {
    const int64_t first = upper ? row + 1 : 0, count = upper ? size - 1 - row : row;
    triangle::add_combination(sign, matrix + row * row_step + first * column_step, column_step,
                              count, columns + first * kBlockSamples,
                              columns + row * kBlockSamples);
  }
};

}  // namespace robustflow
