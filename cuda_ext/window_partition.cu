// CUDA kernel of geo3d::window_partition. geo3d/ops/window_partition.py tells what it computes and has checked the arguments.

#include <algorithm>
#include <tuple>

#include "cell_sort.cuh"

namespace {

using geo3d::CellRange;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = geo3d::kCellThreads;

// Rounding down to the stride first would give the same: floor((floor(c / t) + s) / w) is floor((c + s t) / (w t)).
__device__ int32_t window_of(int32_t coordinate, int64_t shift, int64_t width) {
  const int64_t moved = coordinate + shift;
  return static_cast<int32_t>(moved / width - (moved % width < 0));
}

__global__ void find_windows(const int32_t* __restrict__ coords, int64_t row_stride, int64_t axis_stride, int64_t count,
                             int64_t shift, int64_t width, int4* __restrict__ windows, CellRange* __restrict__ total) {
  CellRange range = geo3d::no_cells();
  for (int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x; row < count; row += int64_t{kThreads} * gridDim.x) {
    const int32_t* voxel = coords + row * row_stride;
    const int4 window =
        make_int4(voxel[0], window_of(voxel[axis_stride], shift, width), window_of(voxel[2 * axis_stride], shift, width),
                  window_of(voxel[3 * axis_stride], shift, width));
    windows[row] = window;
    geo3d::include(window, range);
  }
  geo3d::include(range, total);
}

__global__ void write_offsets(const int64_t* __restrict__ number, int64_t count, int64_t windows,
                              int64_t* __restrict__ offsets) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{kThreads} * gridDim.x) {
    if (i == 0 || number[i] != number[i - 1]) offsets[number[i] - 1] = i;
    if (i == 0) offsets[windows] = count;
  }
}

std::tuple<Tensor, Tensor> window_partition(const Tensor& coords, int64_t stride, int64_t window, bool shift) {
  const torch::stable::accelerator::DeviceGuard guard(coords.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(coords);
  const int64_t count = coords.size(0);
  STD_TORCH_CHECK(count <= INT32_MAX, "window_partition: the CUDA kernel takes at most 2^31 - 1 voxels, got ", count);
  if (count == 0) {
    Tensor offsets = torch::stable::new_empty(coords, {1}, ScalarType::Long);
    return {torch::stable::new_empty(coords, {0}, ScalarType::Long), torch::stable::zero_(offsets)};
  }
  Tensor windows = torch::stable::new_empty(coords, {count, 4});
  Tensor range = geo3d::empty_range(coords, sizeof(CellRange), stream);
  CellRange* const total = static_cast<CellRange*>(range.mutable_data_ptr());
  find_windows<<<std::min(geo3d::blocks_for(count, kThreads), geo3d::kCellBlocks), kThreads, 0, stream>>>(
      geo3d::data<int32_t>(coords), coords.stride(0), coords.stride(1), count, shift ? window / 2 * stride : 0,
      window * stride, reinterpret_cast<int4*>(windows.mutable_data_ptr()), total);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const geo3d::SortedCells sorted = geo3d::sort_cells(windows, total, stream);
  Tensor offsets = torch::stable::new_empty(coords, {sorted.count + 1}, ScalarType::Long);
  write_offsets<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream>>>(
      geo3d::data<int64_t>(sorted.number), count, sorted.count, geo3d::mutable_data<int64_t>(offsets));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {sorted.order, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("window_partition", TORCH_BOX(&window_partition));
}
