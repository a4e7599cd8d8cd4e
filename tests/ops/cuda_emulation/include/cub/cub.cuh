// The device-wide algorithms of CUB that the sources of cuda_ext call, one after the other on the host.

#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* temporary, size_t& bytes, const Key* keys, Key* sorted_keys, const Value* values,
                               Value* sorted_values, int count, int begin_bit, int end_bit, cudaStream_t) {
    if (temporary == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    const int bits = end_bit - begin_bit;
    const Key mask = bits < 64 ? (Key{1} << bits) - 1 : ~Key{0};
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return (keys[a] >> begin_bit & mask) < (keys[b] >> begin_bit & mask);
    });
    for (int i = 0; i < count; ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
    return cudaSuccess;
  }
};

struct DeviceScan {
  template <typename Value>
  static cudaError_t InclusiveSum(void* temporary, size_t& bytes, const Value* in, Value* out, int count,
                                  cudaStream_t) {
    if (temporary == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    std::partial_sum(in, in + count, out);
    return cudaSuccess;
  }
};

}  // namespace cub
