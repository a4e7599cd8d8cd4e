// Results that are written for the first time cost as much in page faults as in work: large pages take 512 at once.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace geo3d {

// Asks the system to back a new tensor, not written yet, with large pages. Advice: where it is not taken nothing changes.
inline torch::stable::Tensor with_large_pages(torch::stable::Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (data + kPage - 1) / kPage * kPage;
  const uintptr_t last = (data + tensor.numel() * tensor.element_size()) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

}  // namespace geo3d
