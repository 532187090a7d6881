// Runs one kernel on a problem, block by block. A block's operands must be planes (kernels.h).
// Where a tensor's own memory is not, inputs are copied into buffers, and outputs from them.
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

// A thread's memory for planes, which is kept for later calls. It belongs to one BlockRunner at a
// time: a thread must not have two.
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
  // `order`: the elements to compute, and in which order. `gradient`: run the backward kernel.
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

  // From now on the kernel adds the sum of each block's log-determinants to *sum, and writes none.
  void sum_logabsdet_into(double* sum) {
    sums_logabsdet_ = true;
    block_.logabsdet_sum = sum;
  }

  // From now on output i stays in its buffer. After each block the caller can read it there:
  // kept_output(i) is the first plane, and planes are capacity() apart.
  void keep_output(int i) { kept_[i] = true; }
  const T* kept_output(int i) const { return out_buffer_[i]; }

  // For parameters that several elements share. The runner's order then has the dimensions of the
  // parameters, and `sharers` has the dimensions over which these are shared. After
  // move_to_sharer(s), every parameter is combined with number s of the elements that share it.
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

  // Runs the elements [start, end) of the order, and calls after_block(start, size) for each block.
  template <class AfterBlock>
  void run(Index start, Index end, const AfterBlock& after_block) {
    while (start < end) {
      Index size = std::min(capacity_, end - start);
      if (run_ >= kLongRun) size = std::min(size, run_ - start % run_);
      // A remainder that does not fill a pack becomes a block of its own. It uses buffers, which
      // are padded.
      if (size > lanes_) size -= size % lanes_;
      run_block(start, size);
      after_block(start, size);
      start += size;
    }
  }

  // Copies planes that are `stride` apart to the elements [start, start + size) of output i.
  void store_output(int i, Index start, Index size, const T* from, Index stride) const {
    store(out_[i], start, size, from, stride, false);
  }

 private:
  // An operand that differs between the elements that share a parameter.
  struct Sharer {
    View* view;     // over the parameters' dimensions
    char* start;    // view->data for the first sharer
    View elements;  // over the dimensions of the sharers
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
  // The distance between planes of an input's buffer; each plane begins at a cache line.
  Index plane_stride(const View& view) const {
    return view.period() > 1 ? capacity_ + kLongestPeriod : capacity_;
  }
  static void assign_buffer(const Operand& operand, Index stride, T*& memory, T*& buffer) {
    buffer = operand.part_of >= 0 ? nullptr : memory;
    if (buffer) memory += operand.num_parameters * stride;
  }

  // Fills the buffers of inputs that repeat (View::period). A block can then start at any element
  // of the first period.
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

  // Whether a block's elements are planes in the operand's own memory. If so, sets `data` to them.
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

  // Whether the gaps between rows are at most as large as the rows, so that prefetching pays.
  static bool dense(const Strided& rows) { return rows.stride <= 2 * rows.num_planes; }

  // Lets the kernel prefetch the next block's rows, assuming that they follow these in memory. If
  // several operands are slices of the same rows, they are prefetched once.
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
  // Lets the kernel prefetch the rows to which an output will be copied.
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

  // Returns the planes of an input; copies them to its buffer first, if necessary.
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

  // Returns the planes to which the kernel writes an output. Sets `in_memory` if they are the
  // tensor's own memory and not a buffer.
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
