// Stable sort of lattice cells [batch, x, y, z] on the device, shared by the CUDA kernels of kernel_support, voxelize and
// window_partition.
//
// A cell becomes a key: its four numbers less their minima, packed into as many bits as their ranges need, so that the
// radix sort passes over few of them. Two keys, sorted one after the other, hold any four 32-bit numbers. The host waits
// twice: for the ranges, and for the number of different cells, which is the size of the results.

#pragma once

#include <cub/cub.cuh>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda_common.cuh"

namespace geo3d {

constexpr int kCellThreads = 256;
constexpr unsigned kCellBlocks = 1024;  // of the kernels that end in atomics: more would only queue there

// Range of the cells, on the device: minima of the numbers, and of the numbers negated.
struct CellRange {
  long long low[4], negated_high[4];

  // All bytes of a range of no cells.
  static constexpr int kEmpty = 0x7F;
};

// Adds this thread's range to the device's. Every thread of a block calls it.
inline __device__ void include(CellRange range, CellRange* total) {
  for (int axis = 0; axis < 4; ++axis) {
    for (int distance = 16; distance > 0; distance /= 2) {
      range.low[axis] = min(range.low[axis], __shfl_xor_sync(0xFFFFFFFF, range.low[axis], distance));
      range.negated_high[axis] =
          min(range.negated_high[axis], __shfl_xor_sync(0xFFFFFFFF, range.negated_high[axis], distance));
    }
    if (threadIdx.x % 32 == 0) {
      atomicMin(&total->low[axis], range.low[axis]);
      atomicMin(&total->negated_high[axis], range.negated_high[axis]);
    }
  }
}

inline __device__ void include(int4 cell, CellRange& range) {
  const int numbers[] = {cell.x, cell.y, cell.z, cell.w};
  for (int axis = 0; axis < 4; ++axis) {
    range.low[axis] = min(range.low[axis], static_cast<long long>(numbers[axis]));
    range.negated_high[axis] = min(range.negated_high[axis], -static_cast<long long>(numbers[axis]));
  }
}

inline __device__ CellRange no_cells() {
  CellRange range;
  for (int axis = 0; axis < 4; ++axis) range.low[axis] = range.negated_high[axis] = INT64_MAX;
  return range;
}

// How a part of a cell's numbers becomes a key.
struct CellPacking {
  long long low[4];
  int bits[4];  // 0 for those that are not part of it

  __device__ uint64_t key(int4 cell) const {
    const int numbers[] = {cell.x, cell.y, cell.z, cell.w};
    uint64_t key = 0;
    for (int axis = 0; axis < 4; ++axis) {
      if (bits[axis] > 0) key = key << bits[axis] | static_cast<uint64_t>(numbers[axis] - low[axis]);
    }
    return key;
  }

  int size() const { return bits[0] + bits[1] + bits[2] + bits[3]; }
};

static __global__ void number_rows(int64_t count, int64_t* __restrict__ order) {
  for (int64_t i = blockIdx.x * int64_t{kCellThreads} + threadIdx.x; i < count; i += int64_t{kCellThreads} * gridDim.x) {
    order[i] = i;
  }
}

static __global__ void make_keys(const int4* __restrict__ cells, const int64_t* __restrict__ order, int64_t count,
                                 CellPacking packing, uint64_t* __restrict__ keys) {
  for (int64_t i = blockIdx.x * int64_t{kCellThreads} + threadIdx.x; i < count; i += int64_t{kCellThreads} * gridDim.x) {
    keys[i] = packing.key(cells[order[i]]);
  }
}

inline __device__ bool same_cell(int4 a, int4 b) { return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w; }

static __global__ void mark_first(const int4* __restrict__ cells, const int64_t* __restrict__ order, int64_t count,
                                  int64_t* __restrict__ first) {
  for (int64_t i = blockIdx.x * int64_t{kCellThreads} + threadIdx.x; i < count; i += int64_t{kCellThreads} * gridDim.x) {
    first[i] = i == 0 || !same_cell(cells[order[i]], cells[order[i - 1]]);
  }
}

// Rows in the order of their cells; equal cells' rows ascend.
struct SortedCells {
  torch::stable::Tensor order;   // (N,)
  torch::stable::Tensor number;  // (N,) of the different cells up to here
  int64_t count;                 // of the different cells
};

// Calls algorithm(temporary, bytes) of CUB, first for the size of its temporary memory and then with it.
template <typename Algorithm>
void with_temporary(const torch::stable::Tensor& like, const Algorithm& algorithm) {
  size_t bytes = 0;
  STD_CUDA_CHECK(algorithm(nullptr, bytes));
  torch::stable::Tensor temporary = torch::stable::new_empty(
      like, {static_cast<int64_t>(std::max<size_t>(bytes, 1))}, torch::headeronly::ScalarType::Byte);
  STD_CUDA_CHECK(algorithm(temporary.mutable_data_ptr(), bytes));
}

// `cells` (N, 4) int32 with N at least 1, and their range on the device.
inline SortedCells sort_cells(const torch::stable::Tensor& cells, const CellRange* device_range, cudaStream_t stream) {
  using torch::headeronly::ScalarType;
  CellRange range;
  STD_CUDA_CHECK(cudaMemcpyAsync(&range, device_range, sizeof(range), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  CellPacking all{};
  for (int axis = 0; axis < 4; ++axis) {
    all.low[axis] = range.low[axis];
    for (uint64_t width = -range.negated_high[axis] - range.low[axis]; width > 0; width /= 2) ++all.bits[axis];
  }
  std::vector<CellPacking> packings{all};  // the least significant first
  if (all.size() > 64) {
    packings.push_back(all);
    packings[0].bits[0] = packings[0].bits[1] = packings[1].bits[2] = packings[1].bits[3] = 0;
  }

  const int64_t count = cells.size(0);
  const int4* data = reinterpret_cast<const int4*>(cells.const_data_ptr());
  const auto rows = [&] { return torch::stable::new_empty(cells, {count}, ScalarType::Long); };
  const unsigned blocks = blocks_for(count, kCellThreads);
  torch::stable::Tensor order = rows(), other_order = rows(), key_memory = rows(), sorted_key_memory = rows();
  uint64_t* keys = static_cast<uint64_t*>(key_memory.mutable_data_ptr());
  uint64_t* sorted_keys = static_cast<uint64_t*>(sorted_key_memory.mutable_data_ptr());
  number_rows<<<blocks, kCellThreads, 0, stream>>>(count, mutable_data<int64_t>(order));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  for (const CellPacking& packing : packings) {
    if (packing.size() == 0) continue;
    make_keys<<<blocks, kCellThreads, 0, stream>>>(data, geo3d::data<int64_t>(order), count, packing, keys);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    with_temporary(cells, [&](void* temporary, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, geo3d::data<int64_t>(order),
                                             mutable_data<int64_t>(other_order), static_cast<int>(count), 0,
                                             packing.size(), stream);
    });
    std::swap(order, other_order);
  }

  torch::stable::Tensor first = other_order, number = key_memory;  // both are free again
  mark_first<<<blocks, kCellThreads, 0, stream>>>(data, geo3d::data<int64_t>(order), count,
                                                  mutable_data<int64_t>(first));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  with_temporary(cells, [&](void* temporary, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(temporary, bytes, geo3d::data<int64_t>(first), mutable_data<int64_t>(number),
                                         static_cast<int>(count), stream);
  });
  int64_t different = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&different, geo3d::data<int64_t>(number) + count - 1, sizeof(different),
                                 cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return {order, number, different};
}

// A range of no cells, and zeros behind it: `bytes` of memory in all.
inline torch::stable::Tensor empty_range(const torch::stable::Tensor& like, size_t bytes, cudaStream_t stream) {
  torch::stable::Tensor memory =
      torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, torch::headeronly::ScalarType::Byte);
  STD_CUDA_CHECK(cudaMemsetAsync(memory.mutable_data_ptr(), 0, bytes, stream));
  STD_CUDA_CHECK(cudaMemsetAsync(memory.mutable_data_ptr(), CellRange::kEmpty, sizeof(CellRange), stream));
  return memory;
}

}  // namespace geo3d
