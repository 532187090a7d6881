// The instruction set whose kernels run: the fastest that this processor supports, unless set_isa()
// chose another.
#pragma once

#include <string>
#include <vector>

namespace robustflow::cpu {

struct KernelTable;     // csrc/cpu/kernels.h
struct MagnitudeTable;  // csrc/cpu/magnitudes.h

// The kernels of the active instruction set. Any thread may call these.
const KernelTable& active_kernels();
const MagnitudeTable& active_magnitudes();

// Its name: "avx512", "avx2", "neon" or "baseline".
const char* isa_name();

// Makes `name` the active instruction set. Throws std::invalid_argument, with a message that lists
// the choices, if it was not built or this processor lacks it.
void set_isa(const char* name);

// The instruction sets in this library, and those of them that this processor supports; the fastest
// first.
std::vector<std::string> isa_built();
std::vector<std::string> isa_supported();

}  // namespace robustflow::cpu
