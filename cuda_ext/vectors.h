// Vectors of floats as wide as the processor's registers, in the compiler's own vector types (GCC, Clang).

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstring>

#include "for_dtype.h"

namespace geo3d {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// Whether there are 32 vector registers, and not 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

typedef float FloatVector __attribute__((vector_size(4 * kLanes)));

inline FloatVector load(const float* from) {
  FloatVector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(float* to, FloatVector vector) { std::memcpy(to, &vector, sizeof vector); }

// The least whole number of vectors that holds so many floats, in floats.
inline int64_t padded(int64_t floats) { return (floats + kLanes - 1) / kLanes * kLanes; }

// A tensor's values as one row of float32 after the other; copied only where they do not lie so already.
inline torch::stable::Tensor float_rows(const torch::stable::Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, torch::headeronly::ScalarType::Float));
}

// Round a row of floats to the result's type.
template <typename Scalar>
inline void round_row(const float* __restrict from, Scalar* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Scalar>(from[i]);
}

}  // namespace geo3d
