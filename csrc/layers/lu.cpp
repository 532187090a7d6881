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
constexpr int64_t kMinWorkPerThread = 1 << 18;

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
std::unique_ptr<T[]> allocate_columns(int64_t columns) {
  return std::unique_ptr<T[]>(new T[columns * kBlockSamples]);
}

// Both factors in one matrix: L below the diagonal, where its ones are left out, U on and above it.
template <class T>
class Factors {
 public:
  const int64_t size;

  Factors(const LUTensors& tensors, double eps)
      : size(tensors.diagonal.numel()), matrix_(size * size), bias_(size) {
    const at::Tensor lower = tensors.lower.contiguous(), upper = tensors.upper.contiguous();
    const at::Tensor diagonal = tensors.diagonal.contiguous(), bias = tensors.bias.contiguous();
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
variable_list forward_typed(const LUTensors& tensors, const LUSettings& settings) {
  const bool inverse = settings.inverse;
  const Factors<T> factors(tensors, settings.eps);
  const int64_t samples = tensors.x.size(0), size = factors.size;
  const int64_t blocks = (samples + kBlockSamples - 1) / kBlockSamples;
  const Columns columns(size, settings);
  const at::Tensor y = at::empty({samples, size}, tensors.x.options());
  const at::Tensor logabsdet = at::empty({samples}, tensors.x.options());
  const Rows<const T> from(tensors.x);
  const Rows<T> to(y);
  const int64_t grain = std::max<int64_t>(1, kMinWorkPerThread / (size * size * kBlockSamples));
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const auto block = allocate_columns<T>(size);
    T* const z = block.get();
    for (int64_t i = begin; i < end; ++i) {
      const SampleRange range(i, kBlockSamples, samples);
      gather(from, columns.x, range, z);
      if (inverse) {
        factors.add_bias(T(-1), range.count, z);
        factors.lower().solve(z);
        factors.upper().solve(z);
      } else {
        factors.upper().multiply(z);
        factors.lower().multiply(z);
        factors.add_bias(T(1), range.count, z);
      }
      scatter(z, kBlockSamples, columns.y, range, false, to);
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
  Backward(const Factors<T>& factors, bool inverse, bool needs_sums, bool needs_x)
      : factors_(factors),
        inverse_(inverse),
        needs_sums_(needs_sums),
        needs_x_(needs_x),
        block_(allocate_columns<T>(3 * factors.size)) {}

  // Where the caller puts the columns of x, and of the gradient of y, which becomes that of x.
  T* x() { return block_.get(); }
  T* gradient() { return block_.get() + 2 * factors_.size * kBlockSamples; }

  void run(int64_t samples, Sums& sums) {
    const int64_t size = factors_.size;
    T *first = x(), *second = first + size * kBlockSamples, *g = gradient();
    if (inverse_) {
      if (needs_sums_) {
        factors_.add_bias(T(-1), samples, first);
        factors_.lower().solve(first);
        std::copy_n(first, size * kBlockSamples, second);
        factors_.upper().solve(second);
      }
      factors_.upper().transposed().solve(g);
      if (needs_sums_) add_upper(g, second, sums);
      factors_.lower().transposed().solve(g);
      if (needs_sums_) add_lower(g, first, sums);
    } else {
      if (needs_sums_) {
        std::copy_n(first, size * kBlockSamples, second);
        factors_.upper().multiply(second);
        add_lower(g, second, sums);
      }
      factors_.lower().transposed().multiply(g);
      if (needs_sums_) add_upper(g, first, sums);
      if (needs_x_) factors_.upper().transposed().multiply(g);
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
  const bool inverse_, needs_sums_, needs_x_;
  const std::unique_ptr<T[]> block_;
};

template <class T>
variable_list backward_typed(const LUTensors& tensors, const LUSettings& settings,
                             const std::vector<bool>& needed, const variable_list& cotangents) {
  const at::Tensor &gy = cotangents[0], &gl = cotangents[1];
  const bool inverse = settings.inverse;
  const Factors<T> factors(tensors, settings.eps);
  const int64_t samples = tensors.x.size(0), size = factors.size;
  const Columns columns(size, settings);
  const bool needs_x = needed[0] && gy.defined();
  const bool needs_sums = std::any_of(needed.begin() + 1, needed.end(), [](bool b) { return b; });

  variable_list gradients(LUTensors::kCount);
  Sums total(size);
  if (gy.defined()) {
    if (needs_x) gradients[0] = at::empty({samples, size}, tensors.x.options());
    const int64_t blocks = (samples + kBlockSamples - 1) / kBlockSamples;
    const int64_t work = blocks * size * size * kBlockSamples;
    const int64_t slabs = std::min({work / kMinWorkPerThread + 1, kMaxGradientParts, blocks});
    std::vector<Sums> others(slabs - 1, Sums(size));
    const Rows<const T> x(tensors.x), grad_y(gy);
    parallel_for(0, slabs, 1, [&](int64_t begin, int64_t end) {
      Backward<T> pass(factors, inverse, needs_sums, needs_x);
      for (int64_t slab = begin; slab < end; ++slab) {
        Sums& sums = slab == 0 ? total : others[slab - 1];
        const int64_t last = (slab + 1) * blocks / slabs;
        for (int64_t block = slab * blocks / slabs; block < last; ++block) {
          const SampleRange range(block, kBlockSamples, samples);
          if (needs_sums) gather(x, columns.x, range, pass.x());
          gather(grad_y, columns.y, range, pass.gradient());
          pass.run(range.count, sums);
          if (needs_x)
            scatter(pass.gradient(), kBlockSamples, columns.x, range, false, Rows<T>(gradients[0]));
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
    gradients[index] = at::empty(like.sizes(), like.options());
    return gradients[index].template data_ptr<T>();
  };
  if (gy.defined()) {
    T *lower = result(1, tensors.lower), *upper = result(2, tensors.upper);
    T* bias = result(4, tensors.bias);
    for (int64_t i = 0; i < size; ++i) {
      const double* row = total.matrix.data() + i * size;
      for (int64_t j = 0; lower && j < i; ++j) *lower++ = static_cast<T>(sign * row[j]);
      for (int64_t j = i + 1; upper && j < size; ++j) *upper++ = static_cast<T>(sign * row[j]);
      if (bias) bias[i] = static_cast<T>(sign * total.bias[i]);
    }
  }
  if (T* to = result(3, tensors.diagonal)) {
    double log_gradient = 0;
    if (gl.defined()) {
      const T* from = data<T>(gl);
      for (int64_t i = 0; i < samples; ++i) log_gradient += from[i * gl.stride(0)];
    }
    const at::Tensor diagonal = tensors.diagonal.contiguous();
    for (int64_t i = 0; i < size; ++i) {
      const double entry_gradient =
          total.matrix[i * size + i] + log_gradient / static_cast<double>(factors.diagonal(i));
      to[i] = static_cast<T>(sign * entry_gradient) * softplus_derivative(data<T>(diagonal)[i]);
    }
  }
  return gradients;
}

}  // namespace

variable_list forward(const LUTensors& tensors, const LUSettings& settings) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensors.x.scalar_type() == at::kDouble ? forward_typed<double>(tensors, settings)
                                                : forward_typed<float>(tensors, settings);
}

variable_list backward(const LUTensors& tensors, const LUSettings& settings,
                       const std::vector<bool>& needed, const variable_list& cotangents) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensors.x.scalar_type() == at::kDouble
             ? backward_typed<double>(tensors, settings, needed, cotangents)
             : backward_typed<float>(tensors, settings, needed, cotangents);
}

}  // namespace robustflow::lu
