// CUDA kernels of geo3d::kernel_map and geo3d::transpose_kernel_map. geo3d/ops/kernel_map.py tells what they compute and
// has checked the arguments.

#include "cuda_common.cuh"

namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;

__device__ bool same(int4 a, int4 b) { return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w; }

__device__ uint64_t hash(int4 voxel) {
  uint64_t value = static_cast<uint32_t>(voxel.x);
  for (const int coordinate : {voxel.y, voxel.z, voxel.w}) {
    value = (value ^ static_cast<uint32_t>(coordinate)) * 0x9E3779B97F4A7C15;
    value ^= value >> 32;
  }
  return value;
}

// Each voxel's row into the first free slot from its hash on; of equal voxels the lowest row stays.
__global__ void insert_voxels(const int4* __restrict__ voxels, int64_t count, int32_t* __restrict__ slots,
                              uint64_t wrap) {
  for (int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x; row < count; row += int64_t{kThreads} * gridDim.x) {
    const int4 voxel = voxels[row];
    for (uint64_t slot = hash(voxel) & wrap;; slot = (slot + 1) & wrap) {
      const int32_t other = atomicCAS(slots + slot, -1, static_cast<int32_t>(row));
      if (other == -1) break;
      if (same(voxels[other], voxel)) {
        atomicMin(slots + slot, static_cast<int32_t>(row));
        break;
      }
    }
  }
}

__device__ bool is_int32(int64_t value) { return value == static_cast<int32_t>(value); }

// One thread for each offset and output.
__global__ void find_neighbours(const int4* __restrict__ voxels, const int32_t* __restrict__ slots, uint64_t wrap,
                                const int4* __restrict__ outputs, int64_t count, int64_t step, int size,
                                int first_offset, int32_t* __restrict__ result) {
  const int64_t total = count * size * size * size;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    const int k = static_cast<int>(i / count);
    const int4 output = outputs[i % count];
    const int64_t x = output.y + step * (first_offset + k % size);
    const int64_t y = output.z + step * (first_offset + k / size % size);
    const int64_t z = output.w + step * (first_offset + k / (size * size));
    int32_t row = -1;
    if (is_int32(x) && is_int32(y) && is_int32(z)) {
      const int4 voxel =
          make_int4(output.x, static_cast<int32_t>(x), static_cast<int32_t>(y), static_cast<int32_t>(z));
      uint64_t slot = hash(voxel) & wrap;
      while ((row = slots[slot]) >= 0 && !same(voxels[row], voxel)) slot = (slot + 1) & wrap;
    }
    result[i] = row;
  }
}

// int4 wants rows at multiples of 16 bytes, where a view may not lie.
Tensor aligned_rows(const Tensor& coords) {
  const Tensor rows = torch::stable::contiguous(coords);
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % sizeof(int4) == 0 ? rows : torch::stable::clone(rows);
}

Tensor kernel_map(const Tensor& in_coords, const Tensor& out_coords, int64_t step, int64_t kernel_size) {
  const torch::stable::accelerator::DeviceGuard guard(in_coords.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(in_coords);
  const Tensor inputs = aligned_rows(in_coords), outputs = aligned_rows(out_coords);
  const int64_t count = inputs.size(0), wanted = outputs.size(0);
  Tensor result = torch::stable::new_empty(out_coords, {kernel_size * kernel_size * kernel_size, wanted});
  if (wanted == 0) return result;
  int64_t size = 2;
  while (size < 2 * count) size *= 2;
  Tensor slots = torch::stable::new_empty(in_coords, {size});
  STD_CUDA_CHECK(cudaMemsetAsync(slots.mutable_data_ptr(), 0xFF, size * sizeof(int32_t), stream));  // all -1
  const int4* voxels = reinterpret_cast<const int4*>(inputs.const_data_ptr());
  int32_t* table = geo3d::mutable_data<int32_t>(slots);
  if (count > 0) {
    insert_voxels<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream>>>(voxels, count, table, size - 1);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const int first_offset = kernel_size % 2 == 1 ? -static_cast<int>(kernel_size / 2) : 0;
  find_neighbours<<<geo3d::blocks_for(result.numel(), kThreads), kThreads, 0, stream>>>(
      voxels, table, size - 1, reinterpret_cast<const int4*>(outputs.const_data_ptr()), wanted, step,
      static_cast<int>(kernel_size), first_offset, geo3d::mutable_data<int32_t>(result));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

__global__ void transpose(const int32_t* __restrict__ neighbours, int64_t outputs, int64_t total, int64_t count,
                          int32_t* __restrict__ result) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    const int32_t input = neighbours[i];
    if (input >= 0 && input < count) result[i / outputs * count + input] = static_cast<int32_t>(i % outputs);
  }
}

Tensor transpose_kernel_map(const Tensor& neighbours, int64_t count) {
  const torch::stable::accelerator::DeviceGuard guard(neighbours.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(neighbours);
  const Tensor map = torch::stable::contiguous(neighbours);
  Tensor result = torch::stable::new_empty(neighbours, {map.size(0), count});
  if (result.numel() == 0) return result;
  STD_CUDA_CHECK(cudaMemsetAsync(result.mutable_data_ptr(), 0xFF, result.numel() * sizeof(int32_t), stream));
  if (map.numel() == 0) return result;
  transpose<<<geo3d::blocks_for(map.numel(), kThreads), kThreads, 0, stream>>>(
      geo3d::data<int32_t>(map), map.size(1), map.numel(), count, geo3d::mutable_data<int32_t>(result));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("kernel_map", TORCH_BOX(&kernel_map));
  m.impl("transpose_kernel_map", TORCH_BOX(&transpose_kernel_map));
}
