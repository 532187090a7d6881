#include "memory_pool.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>
#include <pthread.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <deque>
#include <mutex>

namespace robustflow {
namespace {

struct Block {
  void* data;
  std::size_t bytes;
};

class MemoryPool {
 public:
  // Never destroyed: tensors may be freed at the very end of the process.
  static MemoryPool& global() {
    static MemoryPool* const pool = create();
    return *pool;
  }

  // The smallest block that fits, if no more than twice what is asked for; the latest of equals,
  // since a cache may still hold it. Else a new one.
  Block take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto block = free_.begin(); block != free_.end(); ++block)
        if (block->bytes >= bytes && block->bytes / 2 <= bytes &&
            (best == free_.end() || block->bytes <= best->bytes))
          best = block;
      if (best != free_.end()) {
        const Block block = *best;
        free_.erase(best);
        free_bytes_ -= block.bytes;
        return block;
      }
    }
    return {c10::GetCPUAllocator()->raw_allocate(bytes), bytes};
  }

  // Frees the oldest blocks where there are too many, so that blocks of sizes that are no longer used
  // do not stay.
  void give_back(const Block& block) {
    if (block.bytes > kMaxPooledBytes) return c10::GetCPUAllocator()->raw_deallocate(block.data);
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    free_bytes_ += block.bytes;
    while (free_bytes_ > kMaxPooledBytes) free_oldest();
  }

  std::size_t empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t bytes = free_bytes_;
    while (!free_.empty()) free_oldest();
#ifdef __GLIBC__
    malloc_trim(0);  // glibc may have taken the blocks from its heap, which it would keep
#endif
    return bytes;
  }

 private:
  // A process that is forked while another thread holds the lock would otherwise wait for it forever.
  static MemoryPool* create() {
    pthread_atfork([] { global().mutex_.lock(); }, [] { global().mutex_.unlock(); },
                   [] { global().mutex_.unlock(); });
    return new MemoryPool;
  }

  void free_oldest() {
    c10::GetCPUAllocator()->raw_deallocate(free_.front().data);
    free_bytes_ -= free_.front().bytes;
    free_.pop_front();
  }

  std::mutex mutex_;
  std::deque<Block> free_;  // the oldest first
  std::size_t free_bytes_ = 0;
};

}  // namespace

at::Tensor empty_from_pool(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const std::size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kMinPooledBytes) return at::empty(sizes, options);
  const Block block = MemoryPool::global().take(bytes);
  return at::for_blob(block.data, sizes)
      .deleter([block](void*) { MemoryPool::global().give_back(block); })
      .options(options)
      .make_tensor();
}

std::size_t empty_pool() { return MemoryPool::global().empty(); }

}  // namespace robustflow
