// From what a call says at run time to what a kernel knows at compile time.
#pragma once

#include "../data_type.h"
#include "device.cuh"

namespace fastconv {

// f(T{}) for the elements of maps of this type.
template <class F>
auto with_type(DataType type, F f) {
  switch (type) {
    case DataType::kFloat16:
      return f(__half{});
    case DataType::kBfloat16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace fastconv
