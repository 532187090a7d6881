// The instruction set whose kernels run: the best that this processor supports, or a named one.
#pragma once

#include <string>
#include <vector>

namespace robustflow::cpu {

struct KernelTable;     // csrc/cpu/kernels.h
struct MagnitudeTable;  // csrc/cpu/magnitudes.h

// The kernels of the set in use. Safe to call from any thread.
const KernelTable& active_kernels();
const MagnitudeTable& active_magnitudes();

// Its name: "avx512", "avx2", "neon" or "baseline".
const char* isa_name();

// Uses the set `name` from the next call on. Throws std::invalid_argument, with a sentence that
// lists the choices, where it was not built or this processor lacks it.
void set_isa(const char* name);

// The sets in this library, and those of them that this processor supports; the best first.
std::vector<std::string> isa_built();
std::vector<std::string> isa_supported();

}  // namespace robustflow::cpu
