// From a tensor's dtype to the type that its elements have; for CPU and CUDA sources.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace geo3d {

// Calls body(Scalar{}) with the type that floating tensors of this dtype hold.
template <typename Body>
void for_dtype(torch::headeronly::ScalarType dtype, const Body& body) {
  switch (dtype) {
    case torch::headeronly::ScalarType::Float:
      body(float{});
      break;
    case torch::headeronly::ScalarType::BFloat16:
      body(torch::headeronly::BFloat16{});
      break;
    case torch::headeronly::ScalarType::Half:
      body(torch::headeronly::Half{});
      break;
    default:
      STD_TORCH_CHECK(false, "no kernel for this dtype");
  }
}

}  // namespace geo3d
