// The operators on CUDA tensors.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <vector>

#include "cuda/driver.h"
#include "ops.h"

namespace robustflow {
namespace {

// Makes the device of x current for its own lifetime. The kernels run on torch's current stream,
// and their memory comes from torch's allocator.
class CudaDevice {
 public:
  explicit CudaDevice(const Tensor& x) : x_(x) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(index_, &guard_));
  }
  ~CudaDevice() { aoti_torch_delete_cuda_guard(guard_); }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  bool owns(const Tensor& t) const { return t.is_cuda() && t.get_device_index() == index_; }

  void run_transform(const Problem& problem, int batch_dims, void* logabsdet) {
    cuda::run_transform(problem, batch_dims, logabsdet, context());
  }
  void run_gradient(const Problem& problem) { cuda::run_gradient(problem, context()); }

 private:
  cuda::Context context() {
    cuda::Context context;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &context.stream));
    context.allocate = [](int64_t bytes, void* owner) {
      return static_cast<CudaDevice*>(owner)->allocate(bytes);
    };
    context.owner = this;
    return context;
  }
  // The tensor is freed before the kernels have run. That is safe: torch's allocator reuses its
  // memory only for later work on this stream.
  void* allocate(int64_t bytes) {
    memory_.push_back(empty_strided(x_, {(bytes + 7) / 8}, {1}, ScalarType::Double));
    return memory_.back().mutable_data_ptr();
  }

  const Tensor& x_;
  int32_t index_ = 0;
  CUDAGuardHandle guard_ = nullptr;
  std::vector<Tensor> memory_;
};

}  // namespace
}  // namespace robustflow

STABLE_TORCH_LIBRARY_IMPL(robustflow, CUDA, m) {
  robustflow::register_operators<robustflow::CudaDevice>(m);
}
