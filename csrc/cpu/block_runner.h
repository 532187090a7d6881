// Runs one kernel on a problem, block by block. kernels.h says what planes are: a block's inputs are
// copied into planes unless they are planes already, and its outputs are copied back.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "isa.h"
#include "view.h"

namespace robustflow::cpu {

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4) {
    return active_kernels().float32;
  } else {
    return active_kernels().float64;
  }
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// A thread's memory for planes; it only grows. Only one BlockRunner of a thread may use it at a
// time.
template <class T>
T* buffer(Index elements) {
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local Index bytes = 0;
  const Index size = (elements * Index(sizeof(T)) + 63) / 64 * 64;
  if (size > bytes) {
    memory.reset(std::aligned_alloc(64, size));
    bytes = memory ? size : 0;
    if (!memory) throw std::bad_alloc();
    std::fill_n(static_cast<char*>(memory.get()), size, char(0));
  }
  return static_cast<T*>(memory.get());
}

// Runs the blocks of one task, on one thread.
template <class T>
class BlockRunner {
 public:
  // `order`: the elements and their order. `gradient`: whether to run the backward kernel.
  BlockRunner(const Problem& problem, const Order& order, bool gradient)
      : problem_(problem), kernel_(kernel_of(problem, gradient)) {
    Index num_planes = 0;
    run_ = order.total;
    for (int i = 0; i < problem.num_inputs; ++i) num_planes += add(problem.in[i], order, in_[i]);
    for (int i = 0; i < problem.num_outputs; ++i) num_planes += add(problem.out[i], order, out_[i]);
    Index bytes = 0;
    for (int i = 0; i < problem.num_outputs; ++i) {
      if (problem.out[i].data && problem.out[i].part_of < 0)
        bytes += order.total * problem.out[i].num_parameters * size_of(problem.out[i].dtype);
    }
    streaming_ = bytes > kStreamedBytes;
    capacity_ =
        std::max(kBlockBytes / Index(sizeof(T)) / num_planes / kBlockAlign, Index(1)) * kBlockAlign;
    Index elements = num_planes * capacity_;
    for (int i = 0; i < problem.num_inputs; ++i)
      elements += in_[i].num_planes * (plane_stride(in_[i]) - capacity_);
    T* memory = buffer<T>(elements);
    for (int i = 0; i < problem.num_inputs; ++i)
      assign_buffer(problem.in[i], plane_stride(in_[i]), memory, in_buffer_[i]);
    for (int i = 0; i < problem.num_outputs; ++i)
      assign_buffer(problem.out[i], capacity_, memory, out_buffer_[i]);
    fill_repeating_inputs();
  }

  ~BlockRunner() {
    if (streaming_) kernels<T>().finish_streaming();
  }
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // The largest number of elements in a block.
  Index capacity() const { return capacity_; }

  // From now on the kernel adds each block's log-determinants to *sum instead of writing them.
  void sum_logabsdet_into(double* sum) {
    sums_logabsdet_ = true;
    block_.logabsdet_sum = sum;
  }

  // From now on output i stays in a buffer. After each block the caller can read it from
  // kept_output(i), where its planes are capacity() apart.
  void keep_output(int i) { kept_[i] = true; }
  const T* kept_output(int i) const { return out_buffer_[i]; }

  // For parameters that several elements share. The runner's order then goes through the parameters,
  // and `sharers` through the elements that share one of them. After move_to_sharer(s), a block has
  // element s of those that share each parameter: it uses the x, the cotangents and the gradient of
  // x of these elements. The parameters stay the same.
  void share_parameters(const Order& sharers) {
    const auto add = [&](View& view, const Operand& operand) {
      if (view.data) sharers_.push_back({&view, view.data, View(operand, sharers)});
    };
    for (int i = 0; i < problem_.num_inputs; ++i) add(in_[i], problem_.in[i]);
    add(out_[0], problem_.out[0]);
  }
  void move_to_sharer(Index sharer) {
    for (const Sharer& each : sharers_) {
      each.elements.for_runs(sharer, 1, [&](Index offset, Index, Index) {
        each.view->data = each.start + offset * size_of(each.view->dtype);
      });
    }
    fill_repeating_inputs();
  }

  // Runs the elements [start, end) of the order. `done(start, size)` is called after each block.
  template <class AfterBlock>
  void run(Index start, Index end, const AfterBlock& after_block) {
    while (start < end) {
      Index size = std::min(capacity_, end - start);
      if (run_ >= kLongRun) size = std::min(size, run_ - start % run_);
      // A remainder that does not fill whole packs goes through buffers, which are padded.
      if (size > lanes_) size -= size % lanes_;
      run_block(start, size);
      after_block(start, size);
      start += size;
    }
  }

  // Writes the elements [start, start + size) of output i from planes that are `stride` apart.
  void store_output(int i, Index start, Index size, const T* from, Index stride) const {
    store(out_[i], start, size, from, stride, false);
  }

 private:
  // Where an operand's memory lies for each of the elements that share a parameter.
  struct Sharer {
    View* view;   // over the parameters
    char* start;  // the memory for the first sharer
    View elements;
  };

  static Kernel<T> kernel_of(const Problem& problem, bool gradient) {
    const int direction = (gradient ? kForwardGradient : kForward) + (problem.inverse ? 1 : 0);
    return kernels<T>().transforms[static_cast<int>(problem.transform)][direction];
  }

  Index add(const Operand& operand, const Order& order, View& view) {
    view = View(operand, order);
    if (operand.part_of >= 0) return 0;
    if (operand.data && !view.period()) run_ = std::min(run_, view.run());
    return operand.num_parameters;
  }
  // Elements from plane to plane of an input's buffer; each plane aligned at a cache line.
  Index plane_stride(const View& view) const {
    return view.period() > 1 ? capacity_ + kLongestPeriod : capacity_;
  }
  static void assign_buffer(const Operand& operand, Index stride, T*& memory, T*& buffer) {
    buffer = operand.part_of >= 0 ? nullptr : memory;
    if (buffer) memory += operand.num_parameters * stride;
  }

  // Fills the planes of inputs that repeat, so that a whole block can start anywhere in the first
  // period.
  void fill_repeating_inputs() {
    for (int i = 0; i < problem_.num_inputs; ++i) {
      const View& view = in_[i];
      const Index period = view.period(), stride = plane_stride(view);
      if (!in_buffer_[i] || !period) continue;
      if (!view.data) {
        std::fill_n(in_buffer_[i], view.num_planes * stride, T(0));
        continue;
      }
      kernels<T>().load(view.strided(0), period, in_buffer_[i], stride);
      for (int k = 0; k < view.num_planes; ++k) {
        T* plane = in_buffer_[i] + k * stride;
        if (period == 1) {
          std::fill_n(plane, stride, plane[0]);
          continue;
        }
        for (Index filled = period; filled < stride; filled *= 2)
          std::copy_n(plane, std::min(filled, stride - filled), plane + filled);
      }
    }
  }

  // Whether a block consists of planes in the operand's own memory; `data` is then their address.
  bool in_place(const View& view, Index start, Index size, T*& data) const {
    if (!view.data || view.dtype != dtype_of<T> || view.stride[view.dims - 1] != 1) return false;
    if (size % lanes_ || start % view.run() + size > view.run()) return false;
    view.for_runs(start, size, [&](Index offset, Index, Index) {
      data = reinterpret_cast<T*>(view.data) + offset;
    });
    return true;
  }

  static bool is_cache_line_aligned(const Planes<T>& planes, Index count) {
    const auto aligned = [](auto number) { return number % kCacheLine == 0; };
    return aligned(reinterpret_cast<std::uintptr_t>(planes.data)) &&
           (count == 1 || aligned(planes.stride * Index(sizeof(T))));
  }

  // Whether the gaps between rows are so small that prefetching whole rows is worth it.
  static bool dense(const Strided& rows) { return rows.stride <= 2 * rows.num_planes; }

  // Prefetches the next block's rows, assuming that they follow these. Rows of which several
  // operands are slices are prefetched once.
  void add_prefetch_of_next_rows(const Strided& rows, Index size) {
    if (rows.plane_stride != 1 || rows.num_planes == 1 || !dense(rows)) return;
    const Index bytes = rows.stride * size_of(rows.dtype);
    const char* next = static_cast<const char*>(rows.data) + size * bytes;
    if (block_.num_prefetches > 0) {
      const Index beyond = next - block_.prefetches[block_.num_prefetches - 1].data;
      if (beyond >= 0 && beyond < size * bytes) return;
    }
    block_.prefetches[block_.num_prefetches++] = {next, bytes, false};
  }
  // Prefetches the rows to which an output is copied after the kernel.
  void add_prefetch_of_output_rows(const Strided& rows) {
    if (rows.plane_stride != 1 || rows.num_planes == 1 || !dense(rows)) return;
    block_.prefetches[block_.num_prefetches++] = {static_cast<const char*>(rows.data),
                                                  rows.stride * size_of(rows.dtype), true};
  }

  void run_block(Index start, Index size) {
    block_.size = size;
    block_.num_prefetches = 0;
    for (int i = 0; i < problem_.num_inputs; ++i) block_.in[i] = load_input(i, start, size);
    block_.streaming = streaming_;
    bool in_memory[kMaxOutputs] = {};
    for (int i = 0; i < problem_.num_outputs; ++i)
      block_.out[i] = place_output(i, start, size, in_memory[i]);
    kernel_(block_, problem_.config);
    for (int i = 0; i < problem_.num_outputs; ++i) {
      if (problem_.out[i].part_of >= 0 || in_memory[i] || kept_[i] || !out_[i].data) continue;
      store(out_[i], start, size, out_buffer_[i], capacity_, streaming_);
    }
  }

  // The planes of an input for the block, copied into the buffer if necessary.
  Planes<const T> load_input(int i, Index start, Index size) {
    const Operand& operand = problem_.in[i];
    if (operand.part_of >= 0) return part(block_.in[operand.part_of], operand);
    const View& view = in_[i];
    T* data = nullptr;
    if (in_place(view, start, size, data)) return {data, view.plane_stride};
    const Index stride = plane_stride(view);
    if (const Index period = view.period()) return {in_buffer_[i] + start % period, stride};
    if (view.gathers<T>()) {
      view.gather(start, size, in_buffer_[i]);
    } else {
      view.for_runs(start, size, [&](Index offset, Index done, Index length) {
        const Strided rows = view.strided(offset);
        kernels<T>().load(rows, length, in_buffer_[i] + done, capacity_);
        if (done == 0) add_prefetch_of_next_rows(rows, length);
      });
    }
    return {in_buffer_[i], stride};
  }

  // The planes to which the kernel writes an output. Sets `in_memory` if they are in the operand's
  // own memory, not in the buffer.
  Planes<T> place_output(int i, Index start, Index size, bool& in_memory) {
    const Operand& operand = problem_.out[i];
    if (operand.part_of >= 0) return part(block_.out[operand.part_of], operand);
    if (sums_logabsdet_ && i == 1) return {nullptr, 0};
    const View& view = out_[i];
    T* data = nullptr;
    in_memory = !kept_[i] && in_place(view, start, size, data);
    const Planes<T> planes =
        in_memory ? Planes<T>{data, view.plane_stride} : Planes<T>{out_buffer_[i], capacity_};
    block_.streaming =
        block_.streaming && in_memory && is_cache_line_aligned(planes, view.num_planes);
    if (!in_memory && !kept_[i] && !streaming_ && view.data) {
      view.for_runs(start, size, [&](Index offset, Index done, Index) {
        if (done == 0) add_prefetch_of_output_rows(view.strided(offset));
      });
    }
    return planes;
  }

  template <class Number>
  static Planes<Number> part(const Planes<Number>& whole, const Operand& operand) {
    return {whole.data + operand.first_parameter * whole.stride, whole.stride};
  }

  static void store(const View& view, Index start, Index size, const T* from, Index stride,
                    bool streaming) {
    view.for_runs(start, size, [&](Index offset, Index done, Index length) {
      kernels<T>().store(from + done, stride, length, view.strided(offset), streaming);
    });
  }

  const Problem& problem_;
  Kernel<T> kernel_;
  Index lanes_ = kernels<T>().lanes;
  Index capacity_ = 0, run_ = 1;
  bool sums_logabsdet_ = false, streaming_ = false;
  View in_[kMaxInputs], out_[kMaxOutputs];
  T *in_buffer_[kMaxInputs] = {}, *out_buffer_[kMaxOutputs] = {};
  bool kept_[kMaxOutputs] = {};
  std::vector<Sharer> sharers_;
  Block<T> block_{};
};

}  // namespace robustflow::cpu
