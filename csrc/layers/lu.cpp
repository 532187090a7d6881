// An LU layer's results and gradients.
#include "lu.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "../parallel.h"
#include "columns.h"
#include "gradients.h"
#include "triangle.h"

namespace robustflow::lu {
namespace {

// Multiplications that are worth a thread.
constexpr int64_t kWork = 1 << 18;

template <class T>
T softplus(T x) {
  return x > T(20) ? x : std::log1p(std::exp(x));  // PyTorch's formula and threshold
}

template <class T>
T softplus_derivative(T x) {
  const T power = std::exp(x);
  return x > T(20) ? T(1) : power / (power + T(1));
}

template <class T>
const T* data(const at::Tensor& contiguous) {
  return contiguous.const_data_ptr<T>();
}

template <class T>
std::unique_ptr<T[]> memory(int64_t columns) {
  return std::unique_ptr<T[]>(new T[columns * kBlockSamples]);
}

// Both factors in one matrix: L below the diagonal, where its ones are left out, U on and above it.
template <class T>
class Factors {
 public:
  const int64_t size;

  Factors(const LUTensors& given, double eps)
      : size(given.diagonal.numel()), matrix_(size * size), bias_(size) {
    const at::Tensor lower = given.lower.contiguous(), upper = given.upper.contiguous();
    const at::Tensor diagonal = given.diagonal.contiguous(), bias = given.bias.contiguous();
    const T *below = data<T>(lower), *above = data<T>(upper);
    for (int64_t i = 0; i < size; ++i) {
      T* row = matrix_.data() + i * size;
      std::copy_n(below, i, row);
      below += i;
      row[i] = softplus(data<T>(diagonal)[i]) + static_cast<T>(eps);
      std::copy_n(above, size - 1 - i, row + i + 1);
      above += size - 1 - i;
    }
    std::copy_n(data<T>(bias), size, bias_.data());
  }

  T diagonal(int64_t i) const { return matrix_[i * size + i]; }

  T logabsdet() const {
    T sum(0);
    for (int64_t i = 0; i < size; ++i) sum += std::log(diagonal(i));
    return sum;
  }

  Triangle<T> lower() const { return {matrix_.data(), size, size, 1, false, true}; }
  Triangle<T> upper() const { return {matrix_.data(), size, size, 1, true, false}; }

  // Adds the bias, or subtracts it, where a block has samples.
  void add_bias(T sign, int64_t samples, T* columns) const {
    for (int64_t i = 0; i < size; ++i, columns += kBlockSamples)
      for (int64_t s = 0; s < samples; ++s) columns[s] += sign * bias_[i];
  }

 private:
  std::vector<T> matrix_, bias_;
};

// The columns of x, and of y.
struct Columns {
  std::vector<int64_t> x, y;

  Columns(int64_t size, const LUSettings& settings) : x(all_columns(size)), y(x) {
    if (!settings.permutation.empty()) (settings.inverse ? y : x) = settings.permutation;
  }
};

template <class T>
variable_list forward_typed(const LUTensors& given, const LUSettings& settings) {
  const bool inverse = settings.inverse;
  const Factors<T> factors(given, settings.eps);
  const int64_t samples = given.x.size(0), size = factors.size;
  const int64_t blocks = (samples + kBlockSamples - 1) / kBlockSamples;
  const Columns columns(size, settings);
  const at::Tensor y = at::empty({samples, size}, given.x.options());
  const at::Tensor logabsdet = at::empty({samples}, given.x.options());
  const Rows<const T> from(given.x);
  const Rows<T> to(y);
  const int64_t grain = std::max<int64_t>(1, kWork / (size * size * kBlockSamples));
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const auto block = memory<T>(size);
    T* const z = block.get();
    for (int64_t i = begin; i < end; ++i) {
      const Samples which(i, kBlockSamples, samples);
      gather(from, columns.x, which, z);
      if (inverse) {
        factors.add_bias(T(-1), which.count, z);
        factors.lower().solve(z);
        factors.upper().solve(z);
      } else {
        factors.upper().multiply(z);
        factors.lower().multiply(z);
        factors.add_bias(T(1), which.count, z);
      }
      scatter(z, kBlockSamples, columns.y, which, false, to);
    }
  });
  const T log = factors.logabsdet();
  std::fill_n(logabsdet.data_ptr<T>(), samples, inverse ? -log : log);
  return {y, logabsdet};
}

// The sums over samples of a part of the blocks.
struct Sums {
  std::vector<double> matrix, bias;  // of L below the diagonal, of U on and above it

  explicit Sums(int64_t size) : matrix(size * size), bias(size) {}

  void add(const Sums& other) {
    for (size_t i = 0; i < matrix.size(); ++i) matrix[i] += other.matrix[i];
    for (size_t i = 0; i < bias.size(); ++i) bias[i] += other.bias[i];
  }
};

// One block of a backward pass: the intermediate results again, and the gradients.
template <class T>
class Backward {
 public:
  Backward(const Factors<T>& factors, bool inverse, bool wants_sums, bool wants_x)
      : factors_(factors),
        inverse_(inverse),
        wants_sums_(wants_sums),
        wants_x_(wants_x),
        block_(memory<T>(3 * factors.size)) {}

  // Where the caller puts the columns of x, and of the gradient of y, which becomes that of x.
  T* x() { return block_.get(); }
  T* gradient() { return block_.get() + 2 * factors_.size * kBlockSamples; }

  void run(int64_t samples, Sums& sums) {
    const int64_t size = factors_.size;
    T *first = x(), *second = first + size * kBlockSamples, *g = gradient();
    if (inverse_) {
      if (wants_sums_) {
        factors_.add_bias(T(-1), samples, first);
        factors_.lower().solve(first);
        std::copy_n(first, size * kBlockSamples, second);
        factors_.upper().solve(second);
      }
      factors_.upper().transposed().solve(g);
      if (wants_sums_) add_upper(g, second, sums);
      factors_.lower().transposed().solve(g);
      if (wants_sums_) add_lower(g, first, sums);
    } else {
      if (wants_sums_) {
        std::copy_n(first, size * kBlockSamples, second);
        factors_.upper().multiply(second);
        add_lower(g, second, sums);
      }
      factors_.lower().transposed().multiply(g);
      if (wants_sums_) add_upper(g, first, sums);
      if (wants_x_) factors_.upper().transposed().multiply(g);
    }
  }

 private:
  // Of U, whose input and output's gradient these are.
  void add_upper(const T* g, const T* input, Sums& sums) const {
    const int64_t size = factors_.size;
    for (int64_t i = 0; i < size; ++i)
      triangle::add_dots(g + i * kBlockSamples, input, i, size, sums.matrix.data() + i * size);
  }

  // Of L and of the bias.
  void add_lower(const T* g, const T* input, Sums& sums) const {
    const int64_t size = factors_.size;
    for (int64_t i = 0; i < size; ++i, g += kBlockSamples) {
      triangle::add_dots(g, input, 0, i, sums.matrix.data() + i * size);
      double total = 0;
      for (int64_t s = 0; s < kBlockSamples; ++s) total += g[s];
      sums.bias[i] += total;
    }
  }

  const Factors<T>& factors_;
  const bool inverse_, wants_sums_, wants_x_;
  const std::unique_ptr<T[]> block_;
};

template <class T>
variable_list backward_typed(const LUTensors& given, const LUSettings& settings,
                             const std::vector<bool>& needed, const variable_list& cotangents) {
  const at::Tensor &gy = cotangents[0], &gl = cotangents[1];
  const bool inverse = settings.inverse;
  const Factors<T> factors(given, settings.eps);
  const int64_t samples = given.x.size(0), size = factors.size;
  const Columns columns(size, settings);
  const bool wants_x = needed[0] && gy.defined();
  const bool wants_sums = std::any_of(needed.begin() + 1, needed.end(), [](bool b) { return b; });

  variable_list found(LUTensors::kCount);
  Sums total(size);
  if (gy.defined()) {
    if (wants_x) found[0] = at::empty({samples, size}, given.x.options());
    const int64_t blocks = (samples + kBlockSamples - 1) / kBlockSamples;
    const int64_t work = blocks * size * size * kBlockSamples;
    const int64_t slabs = std::min({work / kWork + 1, kMaxGradientParts, blocks});
    std::vector<Sums> others(slabs - 1, Sums(size));
    const Rows<const T> x(given.x), grad_y(gy);
    parallel_for(0, slabs, 1, [&](int64_t begin, int64_t end) {
      Backward<T> pass(factors, inverse, wants_sums, wants_x);
      for (int64_t slab = begin; slab < end; ++slab) {
        Sums& sums = slab == 0 ? total : others[slab - 1];
        const int64_t last = (slab + 1) * blocks / slabs;
        for (int64_t block = slab * blocks / slabs; block < last; ++block) {
          const Samples which(block, kBlockSamples, samples);
          if (wants_sums) gather(x, columns.x, which, pass.x());
          gather(grad_y, columns.y, which, pass.gradient());
          pass.run(which.count, sums);
          if (wants_x)
            scatter(pass.gradient(), kBlockSamples, columns.x, which, false, Rows<T>(found[0]));
        }
      }
    });
    for (const Sums& each : others) total.add(each);
  }

  // The inverse's gradients of L, U and b are those of the forward direction, negated; so is its
  // log-determinant.
  const double sign = inverse ? -1 : 1;
  const auto result = [&](size_t index, const at::Tensor& like) -> T* {
    if (!needed[index]) return nullptr;
    found[index] = at::empty(like.sizes(), like.options());
    return found[index].template data_ptr<T>();
  };
  if (gy.defined()) {
    T *lower = result(1, given.lower), *upper = result(2, given.upper);
    T* bias = result(4, given.bias);
    for (int64_t i = 0; i < size; ++i) {
      const double* row = total.matrix.data() + i * size;
      for (int64_t j = 0; lower && j < i; ++j) *lower++ = static_cast<T>(sign * row[j]);
      for (int64_t j = i + 1; upper && j < size; ++j) *upper++ = static_cast<T>(sign * row[j]);
      if (bias) bias[i] = static_cast<T>(sign * total.bias[i]);
    }
  }
  if (T* to = result(3, given.diagonal)) {
    double log_gradient = 0;
    if (gl.defined()) {
      const T* from = data<T>(gl);
      for (int64_t i = 0; i < samples; ++i) log_gradient += from[i * gl.stride(0)];
    }
    const at::Tensor diagonal = given.diagonal.contiguous();
    for (int64_t i = 0; i < size; ++i) {
      const double of_entry =
          total.matrix[i * size + i] + log_gradient / static_cast<double>(factors.diagonal(i));
      to[i] = static_cast<T>(sign * of_entry) * softplus_derivative(data<T>(diagonal)[i]);
    }
  }
  return found;
}

}  // namespace

variable_list forward(const LUTensors& given, const LUSettings& settings) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return given.x.scalar_type() == at::kDouble ? forward_typed<double>(given, settings)
                                              : forward_typed<float>(given, settings);
}

variable_list backward(const LUTensors& given, const LUSettings& settings,
                       const std::vector<bool>& needed, const variable_list& cotangents) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return given.x.scalar_type() == at::kDouble
             ? backward_typed<double>(given, settings, needed, cotangents)
             : backward_typed<float>(given, settings, needed, cotangents);
}

}  // namespace robustflow::lu
