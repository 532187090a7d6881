// The driver's backward pass: gradients of x and of the parameters. The gradients of shared
// parameters are sums, added in a fixed order.
#include <vector>

#include "driver.h"
#include "tasks.h"

namespace robustflow::cpu {
namespace {

// Whether output i is a tensor of its own, not a part of another output.
bool has_own_memory(const Problem& problem, int i) { return problem.out[i].part_of < 0; }

// For many parameters: the blocks are blocks of parameters. For each, the elements that share its
// parameters are computed one after the other, and their gradients added.
template <class T>
void gradient_many_shared(const Problem& problem, const SharedDims& shared, ParallelFor parallel) {
  const Order parameters = visiting_order(problem, 0, [&](int d) { return !shared.dim[d]; });
  const Order sharers = visiting_order(problem, 0, [&](int d) { return shared.dim[d]; });
  parallel_tasks(parallel, ceil_div(parameters.total, kSharedTask), [&](Index first, Index last) {
    BlockRunner<T> runner(problem, parameters, true);
    runner.share_parameters(sharers);
    for (int i = 1; i < problem.num_outputs; ++i) runner.keep_output(i);
    std::vector<double> sums[kMaxOutputs];
    std::vector<T> total;
    const Index end = std::min(last * kSharedTask, parameters.total);
    for (Index start = first * kSharedTask; start < end; start += runner.capacity()) {
      const Index size = std::min(runner.capacity(), end - start);
      for (int i = 1; i < problem.num_outputs; ++i) {
        sums[i].assign(has_own_memory(problem, i) ? problem.out[i].num_parameters * size : 0, 0.0);
      }
      for (Index sharer = 0; sharer < sharers.total; ++sharer) {
        runner.move_to_sharer(sharer);
        runner.run(start, start + size, [&](Index at, Index count) {
          for (int i = 1; i < problem.num_outputs; ++i) {
            if (!has_own_memory(problem, i)) continue;
            const T* of_block = runner.kept_output(i);
            for (int k = 0; k < problem.out[i].num_parameters; ++k) {
              kernels<T>().add(of_block + k * runner.capacity(), count,
                               sums[i].data() + k * size + (at - start));
            }
          }
        });
      }
      for (int i = 1; i < problem.num_outputs; ++i) {
        if (!has_own_memory(problem, i) || !problem.out[i].data) continue;
        total.assign(sums[i].begin(), sums[i].end());
        runner.store_output(i, start, size, total.data(), size);
      }
    }
  });
}

// Adds the gradients of a block's elements to the sums of the parameters that these elements share.
class SharedSums {
 public:
  // `view` maps an element to its sums, one per parameter. `capacity`: of the blocks.
  void begin(const View& view, Index capacity) {
    view_ = view;
    period_ = view.period();
    width_ = capacity + period_;
    if (period_) periodic_sums_.assign(view.num_planes * width_, 0.0);
  }

  // Adds the gradients, in planes, of the elements [at, at + size).
  template <class T>
  void add(const T* planes, Index stride, Index at, Index size) {
    // If elements share parameters periodically, each position in a block has a sum of its own
    // until finish(): these additions vectorise.
    if (period_) {
      for (int k = 0; k < view_.num_planes; ++k) {
        kernels<T>().add(planes + k * stride, size,
                         periodic_sums_.data() + k * width_ + at % period_);
      }
      return;
    }
    view_.for_runs(at, size, [&](Index offset, Index done, Index length) {
      for (int k = 0; k < view_.num_planes; ++k) {
        const T* from = planes + k * stride + done;
        double* to = sum(k) + offset;
        const Index step = view_.stride[view_.dims - 1];
        if (step == 0) {
          *to += total(from, length);
        } else if (step == 1) {
          kernels<T>().add(from, length, to);
        } else {
          for (Index j = 0; j < length; ++j) to[j * step] += from[j];
        }
      }
    });
  }

  void finish() {
    if (!period_) return;
    const Index step = view_.stride[view_.dims - 1];
    for (int k = 0; k < view_.num_planes; ++k) {
      const double* from = periodic_sums_.data() + k * width_;
      for (Index first = 0; first < width_; first += period_)
        for (Index j = 0; j < std::min(period_, width_ - first); ++j)
          sum(k)[j * step] += from[first + j];
    }
  }

 private:
  double* sum(int plane) const {
    return reinterpret_cast<double*>(view_.data) + plane * view_.plane_stride;
  }

  template <class T>
  static double total(const T* from, Index length) {
    constexpr int kAccumulators = 8;
    double sums[kAccumulators] = {};
    Index j = 0;
    for (; j + kAccumulators <= length; j += kAccumulators)
      for (int i = 0; i < kAccumulators; ++i) sums[i] += from[j + i];
    for (int i = 0; j < length; ++i, ++j) sums[i] += from[j];
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
  }

  View view_;
  Index period_ = 0, width_ = 0;
  std::vector<double> periodic_sums_;
};

// For few parameters, each shared by many elements: every task sums over a slab of the elements,
// and the slabs' sums are added in a fixed order.
template <class T>
void gradient_few_shared(const Problem& problem, const SharedDims& shared, ParallelFor parallel) {
  const Order order = visiting_order(problem, 0);
  const Order parameters = visiting_order(problem, 0, [&](int d) { return !shared.dim[d]; });
  Index parameter_stride[kMaxDims] = {};
  Index step = 1;
  for (int i = parameters.dims - 1; i >= 0; --i) {
    parameter_stride[parameters.dim[i]] = step;
    step *= parameters.size[i];
  }
  Index num_parameters = 0;
  for (int i = 1; i < problem.num_outputs; ++i)
    if (has_own_memory(problem, i)) num_parameters += problem.out[i].num_parameters;
  const Index sums_per_slab = num_parameters * parameters.total;
  const Index slabs =
      std::clamp(std::min(order.total / task_elements(problem), 4 * order.total / sums_per_slab),
                 Index(1), kMaxSlabs);
  const Index slab_size = ceil_div(order.total, slabs);
  std::vector<double> sums(slabs * sums_per_slab, 0.0);
  parallel_tasks(parallel, slabs, [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, true);
    SharedSums shared_sums[kMaxOutputs];
    for (int i = 1; i < problem.num_outputs; ++i)
      if (has_own_memory(problem, i)) runner.keep_output(i);
    for (Index slab = begin; slab < end; ++slab) {
      double* sum = sums.data() + slab * sums_per_slab;
      for (int i = 1; i < problem.num_outputs; ++i) {
        if (!has_own_memory(problem, i)) continue;
        shared_sums[i].begin(
            View(sum, DType::float64, problem.out[i].num_parameters, parameters.total, order,
                 [&](int d) { return parameter_stride[order.dim[d]]; }),
            runner.capacity());
        sum += problem.out[i].num_parameters * parameters.total;
      }
      const Index start = slab * slab_size;
      runner.run(start, std::min(start + slab_size, order.total), [&](Index at, Index size) {
        for (int i = 1; i < problem.num_outputs; ++i)
          if (has_own_memory(problem, i))
            shared_sums[i].add(runner.kept_output(i), runner.capacity(), at, size);
      });
      for (int i = 1; i < problem.num_outputs; ++i)
        if (has_own_memory(problem, i)) shared_sums[i].finish();
    }
  });
  std::vector<T> total(sums_per_slab);
  for (Index j = 0; j < sums_per_slab; ++j) {
    double sum = 0;
    for (Index slab = 0; slab < slabs; ++slab) sum += sums[slab * sums_per_slab + j];
    total[j] = static_cast<T>(sum);
  }
  const T* from = total.data();
  for (int i = 1; i < problem.num_outputs; ++i) {
    if (!has_own_memory(problem, i)) continue;
    if (problem.out[i].data) {
      const View view(problem.out[i], parameters);
      view.for_runs(0, parameters.total, [&](Index offset, Index done, Index length) {
        kernels<T>().store(from + done, parameters.total, length, view.strided(offset), false);
      });
    }
    from += problem.out[i].num_parameters * parameters.total;
  }
}

template <class T>
void gradient_typed(const Problem& problem, ParallelFor parallel) {
  const SharedDims shared(problem);
  if (!shared.any) return run_each<T>(problem, true, parallel);
  const Order order = visiting_order(problem, 0);
  Index num_parameters = 1;
  for (int d = 0; d < problem.dims; ++d) num_parameters *= shared.dim[d] ? 1 : problem.size[d];
  if (num_parameters >= kManyShared && !shared.dim[order.dim[order.dims - 1]]) {
    gradient_many_shared<T>(problem, shared, parallel);
  } else {
    gradient_few_shared<T>(problem, shared, parallel);
  }
}

}  // namespace

void run_gradient(const Problem& problem, ParallelFor parallel) {
  if (is_empty(problem)) return;  // the caller has set gradients of shared parameters to zero
  if (problem.use_float64) {
    gradient_typed<double>(problem, parallel);
  } else {
    gradient_typed<float>(problem, parallel);
  }
}

}  // namespace robustflow::cpu
