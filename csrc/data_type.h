// What a map's elements are in memory; one numbering for Python and C++.
#pragma once

#include <cstdint>

namespace fastconv {

// Computed in float32 in any case. Float16 is there on a GPU only.
enum class DataType : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int kDataTypeCount = 2;  // of the CPU's kernels

constexpr int64_t element_bytes(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

// Inputs that one step of a matrix product takes: one float32, or a pair of bfloat16.
constexpr int64_t inputs_per_step(DataType type) { return 4 / element_bytes(type); }

}  // namespace fastconv
