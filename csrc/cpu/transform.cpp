// The driver's forward pass: y and the log-determinant.
#include <vector>

#include "driver.h"
#include "tasks.h"

namespace robustflow::cpu {
namespace {

// Long samples: each is divided into tasks, and the tasks' sums are added in a fixed order.
template <class T>
void transform_long_samples(const Problem& problem, const Order& order, Index samples, T* sums,
                            ParallelFor parallel) {
  const Index length = order.total / samples, task_length = task_elements(problem);
  const Index parts = ceil_div(length, task_length);
  std::vector<double> partial(samples * parts, 0.0);
  parallel_tasks(parallel, samples * parts, [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, false);
    for (Index task = begin; task < end; ++task) {
      runner.sum_logabsdet_into(&partial[task]);
      const Index start = task % parts * task_length, sample = task / parts * length;
      runner.run(sample + start, sample + std::min(start + task_length, length), kNoCallback);
    }
  });
  for (Index s = 0; s < samples; ++s) {
    double sum = 0;
    for (Index p = 0; p < parts; ++p) sum += partial[s * parts + p];
    sums[s] = static_cast<T>(sum);
  }
}

// Short samples: each task has several whole samples. The kernel writes the elements'
// log-determinants to a buffer, where they are summed.
template <class T>
void transform_short_samples(const Problem& problem, const Order& order, Index samples, T* sums,
                             ParallelFor parallel) {
  const Index length = order.total / samples;
  const Index per_task = std::max(Index(1), task_elements(problem) / length);
  parallel_tasks(parallel, ceil_div(samples, per_task), [&](Index begin, Index end) {
    const Index first = begin * per_task, last = std::min(end * per_task, samples);
    BlockRunner<T> runner(problem, order, false);
    runner.keep_output(1);
    const T* logabsdet = runner.kept_output(1);
    Index sample = first, left = length;
    double sum = 0;
    runner.run(first * length, last * length, [&](Index, Index size) {
      for (Index i = 0; i < size;) {
        const Index take = std::min(left, size - i);
        double even = 0, odd = 0;
        for (Index j = 0; j + 1 < take; j += 2) {
          even += logabsdet[i + j];
          odd += logabsdet[i + j + 1];
        }
        if (take % 2) even += logabsdet[i + take - 1];
        sum += even + odd;
        i += take;
        left -= take;
        if (left == 0) {
          sums[sample++] = static_cast<T>(sum);
          sum = 0;
          left = length;
        }
      }
    });
  });
}

template <class T>
void transform_typed(const Problem& problem, int batch_dims, T* sums, ParallelFor parallel) {
  if (batch_dims == problem.dims) return run_each<T>(problem, false, parallel);
  Index samples = 1;
  for (int d = 0; d < batch_dims; ++d) samples *= problem.size[d];
  const Order order = visiting_order(problem, batch_dims);
  if (order.total / samples < kShortSample) {
    transform_short_samples<T>(problem, order, samples, sums, parallel);
  } else {
    transform_long_samples<T>(problem, order, samples, sums, parallel);
  }
}

}  // namespace

void run_transform(const Problem& problem, int batch_dims, void* logabsdet, ParallelFor parallel) {
  if (is_empty(problem)) return;  // the caller has set empty sums to zero
  if (problem.use_float64) {
    transform_typed(problem, batch_dims, static_cast<double*>(logabsdet), parallel);
  } else {
    transform_typed(problem, batch_dims, static_cast<float*>(logabsdet), parallel);
  }
}

}  // namespace robustflow::cpu
