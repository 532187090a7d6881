// The operators on CPU tensors, by the CUDA driver and its kernels on the emulator.
//
// Every tensor is copied into a block of its own that is as long as the tensor reaches, so that
// AddressSanitizer sees an access beyond it; what lies between the elements of a strided tensor
// holds poison, and must still hold it afterwards.
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/driver.h"
#include "emulator.h"
#include "ops.h"
#include "order.h"

namespace robustflow {
namespace {

using emulator::Memory;

// Where the elements of an operand lie: every place once.
class Places {
 public:
  Places(const Operand& operand, const Problem& problem) : bytes_(size_of(operand.dtype)) {
    for (int d = 0; d < problem.dims; ++d) add(problem.size[d], operand.stride[d]);
    add(operand.num_parameters, operand.parameter_stride);
  }

  // From the first byte of the first to the last byte of the last.
  std::size_t extent() const {
    std::int64_t last = 0;
    for (const Dim& dim : dims_) {
      if (dim.size == 0) return 0;
      last += (dim.size - 1) * dim.stride;
    }
    return static_cast<std::size_t>((last + 1) * bytes_);
  }

  // f(offset in bytes) for each.
  template <class F>
  void each(const F& f, std::size_t d = 0, std::int64_t offset = 0) const {
    if (d == dims_.size()) return f(offset * bytes_);
    for (std::int64_t i = 0; i < dims_[d].size; ++i) each(f, d + 1, offset + i * dims_[d].stride);
  }

  std::int64_t bytes() const { return bytes_; }

 private:
  struct Dim {
    std::int64_t size, stride;
  };
  void add(std::int64_t size, std::int64_t stride) {
    if (stride < 0) throw emulator::Error("A tensor has a negative stride.");
    if (size != 1 && (stride != 0 || size == 0)) dims_.push_back({size, stride});
  }
  std::int64_t bytes_;
  std::vector<Dim> dims_;
};

// A tensor's stand-in while a problem runs.
class StandIn {
 public:
  StandIn(const void* data, Places places, Memory::Side side)
      : original_(static_cast<char*>(const_cast<void*>(data))),
        places_(std::move(places)),
        memory_(side, places_.extent(), reinterpret_cast<std::uintptr_t>(data) % 16) {}

  void* data() const { return memory_.data(); }

  // An input: with the tensor's elements.
  void fill() {
    memory_.open();
    places_.each([&](std::int64_t at) {
      std::memcpy(memory_.data() + at, original_ + at, places_.bytes());
    });
    if (!memory_.is_vast()) before_.assign(memory_.data(), memory_.data() + memory_.bytes());
    if (memory_.side() == Memory::Side::device) memory_.close();
  }
  void check_untouched(const std::string& name) const {
    memory_.open();
    if (std::memcmp(memory_.data(), before_.data(), before_.size()) || !memory_.lead_is_blank()) {
      throw emulator::Error("A kernel has written to " + name + ".");
    }
  }

  // An output: empty.
  void clear() {
    memory_.open();
    memory_.fill(emulator::kUnwritten);
    memory_.close();
  }
  // Into the tensor, if every element has been written, and nothing else.
  void take(const std::string& name) {
    memory_.open();
    places_.each([&](std::int64_t at) {
      if (memory_.is_blank(at, places_.bytes())) {
        throw emulator::Error("No kernel has written the element " +
                              std::to_string(at / places_.bytes()) + " of " + name + ".");
      }
      std::memcpy(original_ + at, memory_.data() + at, places_.bytes());
    });
    places_.each([&](std::int64_t at) {
      std::memset(memory_.data() + at, emulator::kUnwritten & 0xff, places_.bytes());
    });
    if (memory_.is_vast()) return;
    if (!memory_.is_blank(0, memory_.bytes()) || !memory_.lead_is_blank()) {
      throw emulator::Error("A kernel has written between the elements of " + name + ".");
    }
  }

 private:
  char* original_;
  Places places_;
  Memory memory_;
  std::vector<char> before_;
};

class EmulatedDevice {
 public:
  explicit EmulatedDevice(const Tensor&) {}

  static bool owns(const Tensor& t) { return t.is_cpu(); }

  void run_transform(const Problem& problem, int batch_dims, void* logabsdet) const {
    const auto run_on = [&](void* sums) {
      run(problem, [&](const Problem& stand_ins, const cuda::Context& context) {
        cuda::run_transform(stand_ins, batch_dims, sums, context);
      });
    };
    if (batch_dims == problem.dims || is_empty(problem)) return run_on(nullptr);
    Operand sums;
    sums.data = logabsdet;
    sums.dtype = problem.use_float64 ? DType::float64 : DType::float32;
    sums.num_parameters = 1;
    Problem samples = problem;
    samples.dims = batch_dims;
    std::int64_t step = 1;
    for (int d = batch_dims; d-- > 0; step *= problem.size[d]) sums.stride[d] = step;
    StandIn stand_in(logabsdet, Places(sums, samples), Memory::Side::device);
    stand_in.clear();
    run_on(stand_in.data());
    stand_in.take("the summed log-determinant");
  }

  void run_gradient(const Problem& problem) const {
    run(problem, [](const Problem& stand_ins, const cuda::Context& context) {
      cuda::run_gradient(stand_ins, context);
    });
  }

 private:
  using Memories = std::vector<std::unique_ptr<Memory>>;

  // The problem on stand-ins of its tensors. Nothing is written where there are no elements.
  template <class Driver>
  static void run(const Problem& problem, const Driver& driver) {
    Problem stand_ins = problem;
    std::unique_ptr<StandIn> in[kMaxInputs], out[kMaxOutputs];
    for (int i = 0; i < problem.num_inputs; ++i) {
      const Operand& operand = problem.in[i];
      if (!operand.data || operand.part_of >= 0) continue;
      in[i] =
          std::make_unique<StandIn>(operand.data, Places(operand, problem),
                                    operand.on_host ? Memory::Side::host : Memory::Side::device);
      in[i]->fill();
      stand_ins.in[i].data = in[i]->data();
    }
    for (int i = 0; i < problem.num_outputs; ++i) {
      const Operand& operand = problem.out[i];
      if (!operand.data || operand.part_of >= 0) continue;
      out[i] =
          std::make_unique<StandIn>(operand.data, Places(operand, problem), Memory::Side::device);
      out[i]->clear();
      stand_ins.out[i].data = out[i]->data();
    }
    const Memory config(Memory::Side::host, problem.config_bytes);
    std::memcpy(config.data(), problem.config, config.bytes());
    stand_ins.config = config.data();

    Memories scratch;
    driver(stand_ins, {nullptr, allocate, &scratch});
    for (const auto& memory : scratch) {
      if (!memory->lead_is_blank()) throw emulator::Error("A kernel has written before a block.");
    }
    for (int i = 0; i < problem.num_inputs; ++i) {
      if (in[i]) in[i]->check_untouched("input " + std::to_string(i));
    }
    for (int i = 0; i < problem.num_outputs; ++i) {
      if (out[i] && !is_empty(problem)) out[i]->take("output " + std::to_string(i));
    }
  }

  static void* allocate(std::int64_t bytes, void* owner) {
    auto& scratch = *static_cast<Memories*>(owner);
    scratch.push_back(std::make_unique<Memory>(Memory::Side::device, bytes));
    return scratch.back()->data();
  }
};

}  // namespace
}  // namespace robustflow

STABLE_TORCH_LIBRARY_IMPL(robustflow_emulated, CPU, m) {
  robustflow::register_operators<robustflow::EmulatedDevice>(m);
}

// For the tests, through ctypes.
#define ROBUSTFLOW_EXPORT extern "C" __attribute__((visibility("default")))

ROBUSTFLOW_EXPORT void robustflow_emulated_order(int order, std::uint64_t seed) {
  robustflow::emulator::set_order(static_cast<robustflow::emulator::Order>(order), seed);
}
// Sets the elements of the largest launch, and returns what they were.
ROBUSTFLOW_EXPORT std::int64_t robustflow_emulated_largest_launch(std::int64_t elements) {
  return std::exchange(robustflow::cuda::largest_launch, elements);
}
ROBUSTFLOW_EXPORT std::int64_t robustflow_emulated_launches() {
  return robustflow::emulator::count_launches();
}
// The symbols of the kernels that have run, one a line.
ROBUSTFLOW_EXPORT const char* robustflow_emulated_kernels() {
  static std::string names;
  names.clear();
  for (const void* kernel : robustflow::emulator::kernels_launched()) {
    Dl_info info;
    if (dladdr(kernel, &info) && info.dli_sname) (names += info.dli_sname) += "\n";
  }
  return names.c_str();
}
