// How a problem's elements are divided into tasks.
#pragma once

#include "block_runner.h"
#include "driver.h"

namespace robustflow::cpu {

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Calls work(begin, end) on ranges of tasks, in parallel. `work` creates its buffers once per
// range.
template <class Work>
void parallel_tasks(ParallelFor parallel, Index count, const Work& work) {
  if (count == 1) return work(0, 1);
  parallel(
      0, count, 1,
      [](Index begin, Index end, void* context) {
        (*static_cast<const Work*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&work)));
}

// An after_block for BlockRunner::run that does nothing.
inline constexpr auto kNoCallback = [](Index, Index) {};

// The number of elements in a task. It does not depend on the number of threads, so that sums do
// not either.
inline Index task_elements(const Problem& problem) {
  Index numbers = 0;
  for (int i = 0; i < problem.num_inputs; ++i) numbers += problem.in[i].num_parameters;
  return std::max(kTaskNumbers / numbers / kBlockAlign, Index(1)) * kBlockAlign;
}

// Runs a kernel whose outputs are not sums.
template <class T>
void run_each(const Problem& problem, bool gradient, ParallelFor parallel) {
  const Order order = visiting_order(problem, 0);
  const Index task = task_elements(problem);
  parallel_tasks(parallel, ceil_div(order.total, task), [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, gradient);
    runner.run(begin * task, std::min(end * task, order.total), kNoCallback);
  });
}

}  // namespace robustflow::cpu
