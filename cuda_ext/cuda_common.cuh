// What the CUDA kernels of this folder share.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <cstdint>

#include "for_dtype.h"

namespace geo3d {

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Blocks of `threads` for so many elements; kernels stride over what is beyond the largest grid.
inline unsigned blocks_for(int64_t elements, int threads) {
  const int64_t blocks = (elements + threads - 1) / threads;
  return static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX);
}

template <typename Scalar>
const Scalar* data(const torch::stable::Tensor& tensor) {
  return static_cast<const Scalar*>(tensor.const_data_ptr());
}

template <typename Scalar>
Scalar* mutable_data(torch::stable::Tensor& tensor) {
  return static_cast<Scalar*>(tensor.mutable_data_ptr());
}

// The scene that a row belongs to: the last one that begins at or before it. There is one at least.
inline __device__ int64_t scene_of(const int64_t* offsets, int64_t scenes, int64_t row) {
  int64_t low = 0, high = scenes;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace geo3d
