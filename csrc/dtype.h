// The dtypes of tensors in memory.
#pragma once

#include <cstdint>

namespace robustflow {

enum class DType : int { float64, float32, bfloat16, float16 };

inline constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

}  // namespace robustflow
