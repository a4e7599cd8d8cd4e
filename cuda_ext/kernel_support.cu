// CUDA kernel of geo3d::kernel_support. geo3d/ops/kernel_support.py tells what it computes and has checked the arguments.

#include <algorithm>

#include "cell_sort.cuh"

namespace {

using geo3d::CellRange;
using torch::stable::Tensor;

constexpr int kThreads = geo3d::kCellThreads;

__global__ void find_cells(const int32_t* __restrict__ coords, int64_t row_stride, int64_t axis_stride, int64_t count,
                           int size, int64_t step, int64_t first, int4* __restrict__ cells,
                           CellRange* __restrict__ total) {
  CellRange range = geo3d::no_cells();
  const int taps = size * size * size;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{kThreads} * gridDim.x) {
    const int32_t* voxel = coords + i / taps * row_stride;
    const int tap = static_cast<int>(i % taps);
    const int4 cell = make_int4(voxel[0], static_cast<int>(voxel[axis_stride] + first + step * (tap % size)),
                                static_cast<int>(voxel[2 * axis_stride] + first + step * (tap / size % size)),
                                static_cast<int>(voxel[3 * axis_stride] + first + step * (tap / (size * size))));
    cells[i] = cell;
    geo3d::include(cell, range);
  }
  geo3d::include(range, total);
}

__global__ void write_cells(const int4* __restrict__ cells, const int64_t* __restrict__ order,
                            const int64_t* __restrict__ number, int64_t count, int4* __restrict__ support) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{kThreads} * gridDim.x) {
    if (i == 0 || number[i] != number[i - 1]) support[number[i] - 1] = cells[order[i]];
  }
}

Tensor kernel_support(const Tensor& coords, int64_t step, int64_t kernel_size) {
  const torch::stable::accelerator::DeviceGuard guard(coords.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(coords);
  const int64_t count = coords.size(0) * kernel_size * kernel_size * kernel_size;
  STD_TORCH_CHECK(count <= INT32_MAX, "kernel_support: the CUDA kernel takes at most 2^31 - 1 voxels times offsets, got ",
                  count);
  if (count == 0) return torch::stable::new_empty(coords, {0, 4});
  Tensor cells = torch::stable::new_empty(coords, {count, 4});
  Tensor range = geo3d::empty_range(coords, sizeof(CellRange), stream);
  CellRange* const total = static_cast<CellRange*>(range.mutable_data_ptr());
  int4* const data = reinterpret_cast<int4*>(cells.mutable_data_ptr());
  find_cells<<<std::min(geo3d::blocks_for(count, kThreads), geo3d::kCellBlocks), kThreads, 0, stream>>>(
      geo3d::data<int32_t>(coords), coords.stride(0), coords.stride(1), count, static_cast<int>(kernel_size), step,
      kernel_size % 2 == 1 ? -(kernel_size / 2) * step : 0, data, total);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const geo3d::SortedCells sorted = geo3d::sort_cells(cells, total, stream);
  Tensor support = torch::stable::new_empty(coords, {sorted.count, 4});
  write_cells<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream>>>(
      data, geo3d::data<int64_t>(sorted.order), geo3d::data<int64_t>(sorted.number), count,
      reinterpret_cast<int4*>(support.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return support;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("kernel_support", TORCH_BOX(&kernel_support));
}
