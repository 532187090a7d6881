// PyTorch's pool of threads.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

namespace robustflow {

// f(first, last) for parts of at least `grain`. at::parallel_for is a plain loop in a file that is
// compiled without OpenMP, as all here are; this one is compiled in PyTorch.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (end - begin <= grain) return f(begin, end);
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(
      begin, end, grain,
      [](int64_t first, int64_t last, void* context) { (*static_cast<F*>(context))(first, last); },
      const_cast<F*>(&f)));
}

}  // namespace robustflow
