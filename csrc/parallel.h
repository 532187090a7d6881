// PyTorch's pool of threads.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

namespace robustflow {

// Calls f(first, last) on parts of [begin, end), each at least `grain` long. Not at::parallel_for:
// it is a template, and becomes a plain loop in files that are compiled without OpenMP, as all of
// this project's are. torch_parallel_for is compiled in PyTorch.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (end - begin <= grain) return f(begin, end);
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(
      begin, end, grain,
      [](int64_t first, int64_t last, void* context) { (*static_cast<F*>(context))(first, last); },
      const_cast<F*>(&f)));
}

}  // namespace robustflow
