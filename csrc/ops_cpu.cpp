// The operators on CPU tensors.
#include "cpu/driver.h"
#include "ops.h"

namespace robustflow {
namespace {

struct CpuDevice {
  explicit CpuDevice(const Tensor&) {}

  bool owns(const Tensor& t) const { return t.is_cpu(); }

  void run_transform(const Problem& problem, int batch_dims, void* logabsdet) const {
    cpu::run_transform(problem, batch_dims, logabsdet, parallel_for);
  }
  void run_gradient(const Problem& problem) const { cpu::run_gradient(problem, parallel_for); }

 private:
  static void parallel_for(int64_t begin, int64_t end, int64_t grain,
                           void (*task)(int64_t, int64_t, void*), void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, task, context));
  }
};

}  // namespace
}  // namespace robustflow

STABLE_TORCH_LIBRARY_IMPL(robustflow, CPU, m) {
  robustflow::register_operators<robustflow::CpuDevice>(m);
}
