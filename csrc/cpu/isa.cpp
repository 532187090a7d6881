#include "isa.h"

#include <atomic>
#include <stdexcept>

#ifdef ROBUSTFLOW_HAS_AVX2
#include <cpuid.h>
#endif

namespace robustflow::cpu {

// Defined by csrc/cpu/kernels.cpp and csrc/cpu/magnitudes.cpp, once per instruction set.
const KernelTable& kernel_table_avx512();
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_neon();
const KernelTable& kernel_table_baseline();
const MagnitudeTable& magnitude_table_avx512();
const MagnitudeTable& magnitude_table_avx2();
const MagnitudeTable& magnitude_table_neon();
const MagnitudeTable& magnitude_table_baseline();

namespace {

struct Isa {
  const char* name;
  bool (*supported)();
  const KernelTable& (*kernels)();
  const MagnitudeTable& (*magnitudes)();
};

#ifdef ROBUSTFLOW_HAS_AVX2
// Asks CPUID, because __builtin_cpu_supports("f16c") is an error in older versions of Clang. That
// the operating system saves the 256-bit registers need not be asked here: has_avx2() does.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
#endif

#ifdef ROBUSTFLOW_HAS_AVX512
// The extensions that the compiler may use with -march=skylake-avx512.
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("bmi2");
}
#endif

[[maybe_unused]] bool always() { return true; }

// The fastest first. The last one is always supported.
constexpr Isa kIsas[] = {
#ifdef ROBUSTFLOW_HAS_AVX512
    {"avx512", has_avx512, kernel_table_avx512, magnitude_table_avx512},
#endif
#ifdef ROBUSTFLOW_HAS_AVX2
    {"avx2", has_avx2, kernel_table_avx2, magnitude_table_avx2},
#endif
#ifdef ROBUSTFLOW_HAS_NEON
    {"neon", always, kernel_table_neon, magnitude_table_neon},
#endif
#ifdef ROBUSTFLOW_HAS_BASELINE
    {"baseline", always, kernel_table_baseline, magnitude_table_baseline},
#endif
};

const Isa* best() {
  for (const Isa& isa : kIsas)
    if (isa.supported()) return &isa;
  return nullptr;  // never reached
}

std::atomic<const Isa*>& active() {
  static std::atomic<const Isa*> isa{best()};
  return isa;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const KernelTable& active_kernels() { return active().load(std::memory_order_relaxed)->kernels(); }

const MagnitudeTable& active_magnitudes() {
  return active().load(std::memory_order_relaxed)->magnitudes();
}

const char* isa_name() { return active().load(std::memory_order_relaxed)->name; }

void set_isa(const char* name) {
  const std::string requested(name);
  for (const Isa& isa : kIsas) {
    if (requested != isa.name) continue;
    if (!isa.supported())
      throw std::invalid_argument("this processor does not support the instruction set '" +
                                  requested + "': choose one of " + joined(isa_supported()) + ".");
    active().store(&isa, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("this library has no instruction set '" + requested +
                              "': choose one of " + joined(isa_supported()) + ".");
}

std::vector<std::string> isa_built() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.name);
  return names;
}

std::vector<std::string> isa_supported() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas)
    if (isa.supported()) names.emplace_back(isa.name);
  return names;
}

}  // namespace robustflow::cpu
