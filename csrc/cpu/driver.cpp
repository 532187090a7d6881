#include "cpu/driver.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "order.h"

namespace robustflow::cpu {
namespace {

using Index = std::int64_t;

// Numbers that the elements of one task bring with them, x and parameters: enough to pay for its
// start (some 10 us of work), few enough to share out evenly.
constexpr Index kTaskNumbers = 16384;
// What the planes of a block may take of the first-level cache: half of 32 KB, since the rows of the
// next block come in meanwhile (a K-bin call took 1.5 times as long with 24 KB, where it has 48).
constexpr Index kBlockBytes = 16384;
constexpr Index kMaxBlock = 1024;
// Outputs larger than this are written past the caches: nobody finds all of them there, and a line
// that is written there is read from memory first.
constexpr Index kStreamedBytes = Index(32) << 20;
// A sample below this is too short for a sum of its own: blocks then span samples.
constexpr Index kShortSample = 512;
// Blocks end with the innermost dimension if that is at least this long.
constexpr Index kLongRun = 256;
// A call for each run of fewer elements than this costs more than copying them one by one.
constexpr Index kShortRun = 16;
// Inputs that repeat after so few elements are brought into planes once for a task.
constexpr Index kLongestPeriod = 32;
// Shared parameters with this many elements of their own can be worked on in parallel.
constexpr Index kManyShared = 2048, kSharedTask = 512;
constexpr Index kMaxSlabs = 64;

template <class T>
constexpr DType dtype_of = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4) {
    return active_kernels().single;
  } else {
    return active_kernels().wide;
  }
}

template <class T>
Kernel<T> kernel_of(const Problem& problem, bool gradient) {
  const Kernels<T>& table = kernels<T>();
  const int direction = (gradient ? kForwardGradient : kForward) + (problem.inverse ? 1 : 0);
  switch (problem.transform) {
    case Transform::modified_rq:
      return table.modified_rq[direction];
    case Transform::rq:
      return table.rq[direction];
    default:
      return table.affine[direction];
  }
}

// Calls work(begin, end) on ranges of tasks; what a range needs is made once for all its tasks.
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

// An operand along the order, with as few dimensions as its strides allow.
struct View {
  char* data = nullptr;
  DType dtype = DType::float32;
  int planes = 0;
  Index plane_stride = 0;
  int dims = 0;
  Index size[kMaxDims], stride[kMaxDims];

  View() = default;
  View(const Operand& operand, const Order& order)
      : View(operand.data, operand.dtype, operand.planes, operand.plane_stride, order,
             [&](int i) { return operand.stride[order.dim[i]]; }) {}

  template <class StrideAt>
  View(void* data_, DType dtype_, int planes_, Index plane_stride_, const Order& order,
       const StrideAt& stride_at)
      : data(static_cast<char*>(data_)),
        dtype(dtype_),
        planes(planes_),
        plane_stride(plane_stride_) {
    for (int i = 0; i < order.dims; ++i) {
      const Index s = stride_at(i);
      if (dims > 0 && stride[dims - 1] == s * order.size[i]) {
        size[dims - 1] *= order.size[i];
        stride[dims - 1] = s;
      } else {
        size[dims] = order.size[i];
        stride[dims++] = s;
      }
    }
    if (dims == 0) {
      size[0] = 1;
      stride[0] = 0;
      dims = 1;
    }
  }

  Index run() const { return size[dims - 1]; }  // elements along the innermost dimension
  bool constant() const { return dims == 1 && stride[0] == 0; }
  // After how many elements a view repeats; 0 if it does not, or not so soon.
  Index period() const {
    if (constant()) return 1;
    return dims == 2 && stride[0] == 0 && run() <= kLongestPeriod ? run() : 0;
  }

  // Calls f(offset, elements from `done` on, how many) for each run within [start, start + count).
  template <class F>
  void for_runs(Index start, Index count, const F& f) const {
    Index index[kMaxDims];
    for (int d = dims - 1; d > 0; --d) {
      index[d] = start % size[d];
      start /= size[d];
    }
    index[0] = start;
    const int last = dims - 1;
    for (Index done = 0; done < count;) {
      Index offset = 0;
      for (int d = 0; d < dims; ++d) offset += index[d] * stride[d];
      const Index length = std::min(count - done, size[last] - index[last]);
      f(offset, done, length);
      done += length;
      index[last] += length;
      for (int d = last; d > 0 && index[d] == size[d]; --d) {
        index[d] = 0;
        ++index[d - 1];
      }
    }
  }

  // Copies one plane, element by element.
  template <class T>
  void gather(Index start, Index count, T* to) const {
    const Index length = size[1], step = stride[1];
    const T* from = reinterpret_cast<const T*>(data) + start / length * stride[0];
    for (Index at = start % length, i = 0; i < count; ++i) {
      to[i] = from[at * step];
      if (++at == length) {
        at = 0;
        from += stride[0];
      }
    }
  }
  template <class T>
  bool gathers() const {
    return dims == 2 && planes == 1 && run() < kShortRun && dtype == dtype_of<T>;
  }

  Strided strided(Index offset) const {
    return {data + offset * size_of(dtype), dtype, stride[dims - 1], plane_stride, planes};
  }
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// A thread's memory for planes; it only grows.
template <class T>
T* buffer(Index elements) {
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local Index bytes = 0;
  const Index wanted = (elements * Index(sizeof(T)) + 63) / 64 * 64;
  if (wanted > bytes) {
    memory.reset(std::aligned_alloc(64, wanted));
    bytes = memory ? wanted : 0;
    if (!memory) throw std::bad_alloc();
    std::fill_n(static_cast<char*>(memory.get()), wanted, char(0));
  }
  return static_cast<T*>(memory.get());
}

// Runs one kernel on block after block of a problem: brings inputs into planes, where they do not
// lie in some already, and outputs back. Belongs to one task of one thread.
template <class T>
class BlockRunner {
 public:
  BlockRunner(const Problem& problem, const Order& order, bool gradient)
      : problem_(problem), kernel_(kernel_of<T>(problem, gradient)) {
    Index planes = 0;
    run_ = order.total;
    for (int i = 0; i < problem.num_inputs; ++i) planes += add(problem.in[i], order, in_[i]);
    for (int i = 0; i < problem.num_outputs; ++i) planes += add(problem.out[i], order, out_[i]);
    Index bytes = 0;
    for (int i = 0; i < problem.num_outputs; ++i) {
      if (problem.out[i].data && problem.out[i].part_of < 0)
        bytes += order.total * problem.out[i].planes * size_of(problem.out[i].dtype);
    }
    streams_ = bytes > kStreamedBytes;
    capacity_ = std::clamp(kBlockBytes / Index(sizeof(T)) / planes / kBlockAlign * kBlockAlign,
                           Index(kBlockAlign), kMaxBlock);
    Index elements = planes * capacity_;
    for (int i = 0; i < problem.num_inputs; ++i)
      elements += in_[i].planes * (plane_stride(in_[i]) - capacity_);
    T* memory = buffer<T>(elements);
    for (int i = 0; i < problem.num_inputs; ++i)
      place(problem.in[i], plane_stride(in_[i]), memory, in_buffer_[i]);
    for (int i = 0; i < problem.num_outputs; ++i)
      place(problem.out[i], capacity_, memory, out_buffer_[i]);
    reload();
  }

  ~BlockRunner() {
    if (streams_) kernels<T>().finish_streaming();
  }
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  View& input(int i) { return in_[i]; }
  View& output(int i) { return out_[i]; }
  Block<T>& block() { return block_; }
  Index capacity() const { return capacity_; }
  // Leaves an output in its buffer, for the caller to take from there.
  const T* keep_output(int i) {
    kept_[i] = true;
    return out_buffer_[i];
  }
  const T* output_buffer(int i) const { return out_buffer_[i]; }

  // Fills the planes of inputs that repeat: from any place of the first period on, a whole block.
  void reload() {
    for (int i = 0; i < problem_.num_inputs; ++i) {
      const View& view = in_[i];
      const Index period = view.period(), stride = plane_stride(view);
      if (!in_buffer_[i] || !period) continue;
      if (!view.data) {
        std::fill_n(in_buffer_[i], view.planes * stride, T(0));
        continue;
      }
      kernels<T>().load(view.strided(0), period, in_buffer_[i], stride);
      for (int k = 0; k < view.planes; ++k) {
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

  // Elements [start, end) of the order. `done(start, size)` is called after each block.
  template <class Done>
  void run(Index start, Index end, const Done& done) {
    while (start < end) {
      Index size = std::min(capacity_, end - start);
      if (run_ >= kLongRun) size = std::min(size, run_ - start % run_);
      // What does not fill whole packs is worked on in buffers, which are padded.
      if (size > lanes_) size -= size % lanes_;
      run_block(start, size);
      done(start, size);
      start += size;
    }
  }

 private:
  Index add(const Operand& operand, const Order& order, View& view) {
    view = View(operand, order);
    if (operand.part_of >= 0) return 0;
    if (operand.data && !view.period()) run_ = std::min(run_, view.run());
    return operand.planes;
  }
  // Of an input's planes in the buffer; the buffer's planes begin with a cache line.
  Index plane_stride(const View& view) const {
    return view.period() > 1 ? capacity_ + kLongestPeriod : capacity_;
  }
  static void place(const Operand& operand, Index stride, T*& memory, T*& place) {
    place = operand.part_of >= 0 ? nullptr : memory;
    if (place) memory += operand.planes * stride;
  }

  // The operand's own memory, where a block of it is planes already.
  bool in_place(const View& view, Index start, Index size, T*& data) const {
    if (!view.data || view.dtype != dtype_of<T> || view.stride[view.dims - 1] != 1) return false;
    if (size % lanes_ || start % view.run() + size > view.run()) return false;
    view.for_runs(start, size, [&](Index offset, Index, Index) {
      data = reinterpret_cast<T*>(view.data) + offset;
    });
    return true;
  }

  static bool on_lines(const Planes<T>& planes, Index count) {
    const auto begins = [](auto number) { return number % kCacheLine == 0; };
    return begins(reinterpret_cast<std::uintptr_t>(planes.data)) &&
           (count == 1 || begins(planes.stride * Index(sizeof(T))));
  }

  // Whether fetching rows with what lies between them is worth while.
  static bool dense(const Strided& rows) { return rows.stride <= 2 * rows.planes; }

  // The next block's rows most likely follow these. Slices of the same rows are announced once.
  void announce(const Strided& rows, Index size) {
    if (!dense(rows)) return;
    const Index bytes = rows.stride * size_of(rows.dtype);
    const char* next = static_cast<const char*>(rows.data) + size * bytes;
    if (block_.num_ahead > 0) {
      const Index beyond = next - block_.ahead[block_.num_ahead - 1].data;
      if (beyond >= 0 && beyond < size * bytes) return;
    }
    block_.ahead[block_.num_ahead++] = {next, bytes, false};
  }

  void run_block(Index start, Index size) {
    block_.size = size;
    block_.num_ahead = 0;
    for (int i = 0; i < problem_.num_inputs; ++i) {
      const Operand& operand = problem_.in[i];
      if (operand.part_of >= 0) {
        const Planes<const T> whole = block_.in[operand.part_of];
        block_.in[i] = {whole.data + operand.first_plane * whole.stride, whole.stride};
        continue;
      }
      const View& view = in_[i];
      T* data = nullptr;
      if (in_place(view, start, size, data)) {
        block_.in[i] = {data, view.plane_stride};
        continue;
      }
      block_.in[i] = {in_buffer_[i], plane_stride(view)};
      if (view.period()) {
        block_.in[i].data += start % view.period();
        continue;
      }
      if (view.gathers<T>()) {
        view.gather(start, size, in_buffer_[i]);
        continue;
      }
      view.for_runs(start, size, [&](Index offset, Index done, Index length) {
        const Strided rows = view.strided(offset);
        kernels<T>().load(rows, length, in_buffer_[i] + done, capacity_);
        if (done == 0 && rows.plane_stride == 1 && rows.planes > 1) announce(rows, length);
      });
    }
    block_.streams = streams_;
    bool stored[kMaxOutputs] = {};
    for (int i = 0; i < problem_.num_outputs; ++i) {
      const Operand& operand = problem_.out[i];
      if (operand.part_of >= 0) {
        const Planes<T> whole = block_.out[operand.part_of];
        block_.out[i] = {whole.data + operand.first_plane * whole.stride, whole.stride};
        continue;
      }
      if (fused_sum_ && i == 1) {
        block_.out[i] = {nullptr, 0};
        continue;
      }
      T* data = nullptr;
      stored[i] = !kept_[i] && in_place(out_[i], start, size, data);
      block_.out[i] =
          stored[i] ? Planes<T>{data, out_[i].plane_stride} : Planes<T>{out_buffer_[i], capacity_};
      block_.streams = block_.streams && stored[i] && on_lines(block_.out[i], out_[i].planes);
      if (!stored[i] && !kept_[i] && !streams_ && out_[i].data) {
        out_[i].for_runs(start, size, [&](Index offset, Index done, Index) {
          const Strided rows = out_[i].strided(offset);
          if (done != 0 || rows.plane_stride != 1 || rows.planes == 1 || !dense(rows)) return;
          block_.ahead[block_.num_ahead++] = {static_cast<const char*>(rows.data),
                                              rows.stride * size_of(rows.dtype), true};
        });
      }
    }
    kernel_(block_, problem_.config);
    for (int i = 0; i < problem_.num_outputs; ++i) {
      const View& view = out_[i];
      if (problem_.out[i].part_of >= 0 || stored[i] || kept_[i] || !view.data) continue;
      view.for_runs(start, size, [&](Index offset, Index done, Index length) {
        kernels<T>().store(out_buffer_[i] + done, capacity_, length, view.strided(offset),
                           streams_);
      });
    }
  }

 public:
  // The kernel adds its block's log-determinants to block().logabsdet_sum.
  void fuse_sum() { fused_sum_ = true; }

 private:
  const Problem& problem_;
  Kernel<T> kernel_;
  Index lanes_ = kernels<T>().lanes;
  Index capacity_ = 0, run_ = 1;
  bool fused_sum_ = false, streams_ = false;
  View in_[kMaxInputs], out_[kMaxOutputs];
  T *in_buffer_[kMaxInputs] = {}, *out_buffer_[kMaxOutputs] = {};
  bool kept_[kMaxOutputs] = {};
  Block<T> block_{};
};

constexpr auto kNothing = [](Index, Index) {};

// Elements of one task. It depends on the problem alone, so that sums are the same on any number
// of threads.
Index task_elements(const Problem& problem) {
  Index numbers = 0;
  for (int i = 0; i < problem.num_inputs; ++i) numbers += problem.in[i].planes;
  return std::max(kTaskNumbers / numbers / kBlockAlign, Index(1)) * kBlockAlign;
}

Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Every element by itself.
template <class T>
void run_each(const Problem& problem, bool gradient, ParallelFor parallel) {
  const Order order = visiting_order(problem, 0);
  const Index task = task_elements(problem);
  parallel_tasks(parallel, ceil_div(order.total, task), [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, gradient);
    runner.run(begin * task, std::min(end * task, order.total), kNothing);
  });
}

// Long samples: tasks within a sample, whose sums are added in their order.
template <class T>
void transform_long_samples(const Problem& problem, const Order& order, Index samples, T* sums,
                            ParallelFor parallel) {
  const Index length = order.total / samples, task_length = task_elements(problem);
  const Index parts = ceil_div(length, task_length);
  std::vector<double> partial(samples * parts, 0.0);
  parallel_tasks(parallel, samples * parts, [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, false);
    runner.fuse_sum();
    for (Index task = begin; task < end; ++task) {
      runner.block().logabsdet_sum = &partial[task];
      const Index start = task % parts * task_length, sample = task / parts * length;
      runner.run(sample + start, sample + std::min(start + task_length, length), kNothing);
    }
  });
  for (Index s = 0; s < samples; ++s) {
    double sum = 0;
    for (Index p = 0; p < parts; ++p) sum += partial[s * parts + p];
    sums[s] = static_cast<T>(sum);
  }
}

// Short samples: tasks of many whole samples; every element's log-determinant passes through a
// buffer.
template <class T>
void transform_short_samples(const Problem& problem, const Order& order, Index samples, T* sums,
                             ParallelFor parallel) {
  const Index length = order.total / samples;
  const Index per_task = std::max(Index(1), task_elements(problem) / length);
  parallel_tasks(parallel, ceil_div(samples, per_task), [&](Index begin, Index end) {
    const Index first = begin * per_task, last = std::min(end * per_task, samples);
    BlockRunner<T> runner(problem, order, false);
    const T* logabsdet = runner.keep_output(1);
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

// ---- gradients ---------------------------------------------------------------------------------

// Many parameters, each shared by some elements: blocks of parameters, and for each of them its
// elements in order, summed on the way.
template <class T>
void gradient_many_shared(const Problem& problem, const SharedDims& shared, ParallelFor parallel) {
  const Order own = visiting_order(problem, 0, [&](int d) { return !shared.dim[d]; });
  const Order others = visiting_order(problem, 0, [&](int d) { return shared.dim[d]; });
  const auto others_view = [&](const Operand& operand) {
    return View(operand.data, operand.dtype, 1, 0, others,
                [&](int i) { return operand.stride[others.dim[i]]; });
  };
  parallel_tasks(parallel, ceil_div(own.total, kSharedTask), [&](Index first, Index last) {
    BlockRunner<T> runner(problem, own, true);
    struct Moving {
      View* view;   // over the parameters
      char* data;   // where it starts
      View others;  // over the elements that share them
    };
    std::vector<Moving> moving;
    const auto add = [&](View& view, const Operand& operand) {
      if (view.data) moving.push_back({&view, view.data, others_view(operand)});
    };
    for (int i = 0; i < problem.num_inputs; ++i) add(runner.input(i), problem.in[i]);
    add(runner.output(0), problem.out[0]);
    for (int i = 1; i < problem.num_outputs; ++i) runner.keep_output(i);

    std::vector<double> sums[kMaxOutputs];
    std::vector<T> total;
    const Index end = std::min(last * kSharedTask, own.total);
    for (Index start = first * kSharedTask; start < end; start += runner.capacity()) {
      const Index size = std::min(runner.capacity(), end - start);
      for (int i = 1; i < problem.num_outputs; ++i) {
        sums[i].assign(problem.out[i].part_of < 0 ? problem.out[i].planes * size : 0, 0.0);
      }
      for (Index other = 0; other < others.total; ++other) {
        for (Moving& m : moving) {
          m.others.for_runs(other, 1, [&](Index offset, Index, Index) {
            m.view->data = m.data + offset * size_of(m.view->dtype);
          });
        }
        runner.reload();
        runner.run(start, start + size, [&](Index at, Index count) {
          for (int i = 1; i < problem.num_outputs; ++i) {
            if (problem.out[i].part_of >= 0) continue;
            const T* made = runner.output_buffer(i);
            for (int k = 0; k < problem.out[i].planes; ++k) {
              kernels<T>().add(made + k * runner.capacity(), count,
                               sums[i].data() + k * size + (at - start));
            }
          }
        });
      }
      for (int i = 1; i < problem.num_outputs; ++i) {
        const View& view = runner.output(i);
        if (problem.out[i].part_of >= 0 || !view.data) continue;
        total.assign(sums[i].begin(), sums[i].end());
        view.for_runs(start, size, [&](Index offset, Index done, Index length) {
          kernels<T>().store(total.data() + done, size, length, view.strided(offset), false);
        });
      }
    }
  });
}

// Sums of what a block's elements give to the parameters that they share.
class SharedSums {
 public:
  // `view` is over the sums: its planes, and along the elements that come.
  void begin(const View& view, Index capacity) {
    view_ = view;
    period_ = view.period();
    width_ = capacity + period_;
    if (period_) by_place_.assign(view.planes * width_, 0.0);
  }

  // The elements from `at` on, in planes.
  template <class T>
  void add(const T* made, Index stride, Index at, Index size) {
    if (period_) {  // each place of a block for itself: no sum waits for another
      for (int k = 0; k < view_.planes; ++k) {
        kernels<T>().add(made + k * stride, size, by_place_.data() + k * width_ + at % period_);
      }
      return;
    }
    view_.for_runs(at, size, [&](Index offset, Index done, Index length) {
      for (int k = 0; k < view_.planes; ++k) {
        const T* from = made + k * stride + done;
        double* to = sum(k) + offset;
        const Index step = view_.stride[view_.dims - 1];
        if (step == 0) {
          *to += total(from, length);
        } else if (step == 1) {
          kernels<T>().add(from, length, to);
        } else {
          for (Index j = 0; j < length; ++j) to[j * step] += from[j];
        }
      }
    });
  }

  void finish() {
    if (!period_) return;
    const Index step = view_.stride[view_.dims - 1];
    for (int k = 0; k < view_.planes; ++k) {
      const double* from = by_place_.data() + k * width_;
      for (Index first = 0; first < width_; first += period_)
        for (Index j = 0; j < std::min(period_, width_ - first); ++j)
          sum(k)[j * step] += from[first + j];
    }
  }

 private:
  double* sum(int plane) const {
    return reinterpret_cast<double*>(view_.data) + plane * view_.plane_stride;
  }

  template <class T>
  static double total(const T* from, Index length) {
    constexpr int kSideBySide = 8;
    double sums[kSideBySide] = {};
    Index j = 0;
    for (; j + kSideBySide <= length; j += kSideBySide)
      for (int i = 0; i < kSideBySide; ++i) sums[i] += from[j + i];
    for (int i = 0; j < length; ++i, ++j) sums[i] += from[j];
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
  }

  View view_;
  Index period_ = 0, width_ = 0;
  std::vector<double> by_place_;
};

// Few parameters, shared by many elements: slabs of elements, each with sums of its own, which are
// added in their order.
template <class T>
void gradient_few_shared(const Problem& problem, const SharedDims& shared, ParallelFor parallel) {
  const Order order = visiting_order(problem, 0);
  const Order own = visiting_order(problem, 0, [&](int d) { return !shared.dim[d]; });
  Index own_stride[kMaxDims] = {};
  Index step = 1;
  for (int i = own.dims - 1; i >= 0; --i) {
    own_stride[own.dim[i]] = step;
    step *= own.size[i];
  }
  Index planes = 0;
  for (int i = 1; i < problem.num_outputs; ++i)
    if (problem.out[i].part_of < 0) planes += problem.out[i].planes;
  const Index sums_per_slab = planes * own.total;
  const Index slabs =
      std::clamp(std::min(order.total / task_elements(problem), 4 * order.total / sums_per_slab),
                 Index(1), kMaxSlabs);
  const Index slab_size = ceil_div(order.total, slabs);
  std::vector<double> sums(slabs * sums_per_slab, 0.0);
  parallel_tasks(parallel, slabs, [&](Index begin, Index end) {
    BlockRunner<T> runner(problem, order, true);
    SharedSums shared_sums[kMaxOutputs];
    for (int i = 1; i < problem.num_outputs; ++i)
      if (problem.out[i].part_of < 0) runner.keep_output(i);
    for (Index slab = begin; slab < end; ++slab) {
      double* sum = sums.data() + slab * sums_per_slab;
      for (int i = 1; i < problem.num_outputs; ++i) {
        if (problem.out[i].part_of >= 0) continue;
        shared_sums[i].begin(View(sum, DType::float64, problem.out[i].planes, own.total, order,
                                  [&](int d) { return own_stride[order.dim[d]]; }),
                             runner.capacity());
        sum += problem.out[i].planes * own.total;
      }
      const Index start = slab * slab_size;
      runner.run(start, std::min(start + slab_size, order.total), [&](Index at, Index size) {
        for (int i = 1; i < problem.num_outputs; ++i)
          if (problem.out[i].part_of < 0)
            shared_sums[i].add(runner.output_buffer(i), runner.capacity(), at, size);
      });
      for (int i = 1; i < problem.num_outputs; ++i)
        if (problem.out[i].part_of < 0) shared_sums[i].finish();
    }
  });
  std::vector<T> total(sums_per_slab);
  for (Index j = 0; j < sums_per_slab; ++j) {
    double sum = 0;
    for (Index slab = 0; slab < slabs; ++slab) sum += sums[slab * sums_per_slab + j];
    total[j] = static_cast<T>(sum);
  }
  const T* from = total.data();
  for (int i = 1; i < problem.num_outputs; ++i) {
    if (problem.out[i].part_of >= 0) continue;
    if (problem.out[i].data) {
      const View view(problem.out[i], own);
      view.for_runs(0, own.total, [&](Index offset, Index done, Index length) {
        kernels<T>().store(from + done, own.total, length, view.strided(offset), false);
      });
    }
    from += problem.out[i].planes * own.total;
  }
}

template <class T>
void gradient_typed(const Problem& problem, ParallelFor parallel) {
  const SharedDims shared(problem);
  if (!shared.any) return run_each<T>(problem, true, parallel);
  const Order order = visiting_order(problem, 0);
  Index own = 1;
  for (int d = 0; d < problem.dims; ++d) own *= shared.dim[d] ? 1 : problem.size[d];
  if (own >= kManyShared && !shared.dim[order.dim[order.dims - 1]]) {
    gradient_many_shared<T>(problem, shared, parallel);
  } else {
    gradient_few_shared<T>(problem, shared, parallel);
  }
}

}  // namespace

void run_transform(const Problem& problem, int batch_dims, void* logabsdet, ParallelFor parallel) {
  if (is_empty(problem)) return;  // the caller has zeroed sums over nothing
  if (problem.wide) {
    transform_typed(problem, batch_dims, static_cast<double*>(logabsdet), parallel);
  } else {
    transform_typed(problem, batch_dims, static_cast<float*>(logabsdet), parallel);
  }
}

void run_gradient(const Problem& problem, ParallelFor parallel) {
  if (is_empty(problem)) return;  // the caller has zeroed gradients of shared parameters
  if (problem.wide) {
    gradient_typed<double>(problem, parallel);
  } else {
    gradient_typed<float>(problem, parallel);
  }
}

}  // namespace robustflow::cpu
