// How a problem's elements are divided into tasks.
#pragma once

#include "block_runner.h"
#include "driver.h"

namespace robustflow::cpu {

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Calls work(begin, end) on ranges of tasks, so that buffers are created once for a range.
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

// For BlockRunner::run, if nothing is to be done after a block.
inline constexpr auto kNoCallback = [](Index, Index) {};

// Elements of one task. It depends on the problem alone, so that sums are the same on any number
// of threads.
inline Index task_elements(const Problem& problem) {
  Index numbers = 0;
  for (int i = 0; i < problem.num_inputs; ++i) numbers += problem.in[i].num_parameters;
  return std::max(kTaskNumbers / numbers / kBlockAlign, Index(1)) * kBlockAlign;
}

// Runs a kernel without sums.
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
