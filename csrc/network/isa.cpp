// The instruction set whose loops run.
#include <atomic>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace robustflow::network {

// Defined by kernels.cpp, once for each instruction set.
const KernelTable& kernel_table_avx512();
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_neon();
const KernelTable& kernel_table_baseline();

namespace {

struct Isa {
  const char* name;
  const KernelTable& (*table)();
};

// The last one runs everywhere.
constexpr Isa kIsas[] = {
#ifdef ROBUSTFLOW_HAS_AVX512
    {"avx512", kernel_table_avx512},
#endif
#ifdef ROBUSTFLOW_HAS_AVX2
    {"avx2", kernel_table_avx2},
#endif
#ifdef ROBUSTFLOW_HAS_NEON
    {"neon", kernel_table_neon},
#endif
#ifdef ROBUSTFLOW_HAS_BASELINE
    {"baseline", kernel_table_baseline},
#endif
};

std::atomic<const Isa*> active{&kIsas[sizeof kIsas / sizeof *kIsas - 1]};

}  // namespace

const KernelTable& active_kernels() { return active.load(std::memory_order_relaxed)->table(); }

void set_isa(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::string(name) != isa.name) continue;
    active.store(&isa, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("robustflow._autograd has no instruction set '" + std::string(name) +
                              "'.");
}

}  // namespace robustflow::network
