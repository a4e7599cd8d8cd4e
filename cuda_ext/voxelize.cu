// CUDA kernel of geo3d::voxelize. geo3d/ops/voxelize.py tells what it computes and has checked the arguments. It waits for
// the device: points without a cell are refused, and the results are as long as there are voxels.

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "cell_sort.cuh"
#include "voxelize.h"

namespace {

using geo3d::CellRange;
using geo3d::kMaxCoordinate;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = geo3d::kCellThreads;

// What one pass over the points finds.
struct Findings {
  CellRange range;
  long long first_not_finite, first_too_far;  // beyond all rows where there is none
  unsigned long long not_finite, too_far;
};

struct Lattice {
  const int64_t* offsets;  // (B + 1)
  const double* origin;    // (B, 3)
  int64_t scenes;
  double voxel_size;
};

template <typename Scalar>
__global__ void find_cells(const Scalar* __restrict__ xyz, int64_t row_stride, int64_t axis_stride, int64_t count,
                           Lattice lattice, int4* __restrict__ cells, Findings* __restrict__ findings) {
  CellRange range = geo3d::no_cells();
  for (int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x; row < count; row += int64_t{kThreads} * gridDim.x) {
    const int64_t scene = geo3d::scene_of(lattice.offsets, lattice.scenes, row);
    bool finite = true, near = true;
    int cell[3];
    for (int axis = 0; axis < 3; ++axis) {
      const double value = static_cast<double>(xyz[row * row_stride + axis * axis_stride]);
      const double place = (value - lattice.origin[3 * scene + axis]) / lattice.voxel_size;
      finite = finite && isfinite(value);
      near = near && place >= -kMaxCoordinate && place < kMaxCoordinate + 1;  // false for NaN
      cell[axis] = near ? static_cast<int>(floor(place)) : 0;
    }
    const int4 found = make_int4(static_cast<int>(scene), cell[0], cell[1], cell[2]);
    cells[row] = found;
    geo3d::include(found, range);
    if (!finite) {
      atomicAdd(&findings->not_finite, 1ull);
      atomicMin(&findings->first_not_finite, static_cast<long long>(row));
    }
    if (!near) {
      atomicAdd(&findings->too_far, 1ull);
      atomicMin(&findings->first_too_far, static_cast<long long>(row));
    }
  }
  geo3d::include(range, &findings->range);
}

// Each voxel's coordinates and first point, and each point's voxel.
__global__ void write_voxels(const int4* __restrict__ cells, const int64_t* __restrict__ order,
                             const int64_t* __restrict__ number, int64_t count, int4* __restrict__ coords,
                             int64_t* __restrict__ inverse, int64_t* __restrict__ index) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{kThreads} * gridDim.x) {
    const int64_t voxel = number[i] - 1, row = order[i];
    inverse[row] = voxel;
    if (i == 0 || number[i - 1] != number[i]) {
      coords[voxel] = cells[row];
      index[voxel] = row;
    }
  }
}

// The lowest priority in each voxel; `lowest` holds some point's of it.
__global__ void find_lowest(const int64_t* __restrict__ priority, int64_t stride, const int64_t* __restrict__ inverse,
                            int64_t count, long long* __restrict__ lowest) {
  for (int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x; row < count; row += int64_t{kThreads} * gridDim.x) {
    atomicMin(lowest + inverse[row], static_cast<long long>(priority[row * stride]));
  }
}

__global__ void take_priority(const int64_t* __restrict__ priority, int64_t stride, const int64_t* __restrict__ index,
                              int64_t voxels, long long* __restrict__ lowest) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < voxels; i += int64_t{kThreads} * gridDim.x) {
    lowest[i] = priority[index[i] * stride];
  }
}

// The first point of the lowest priority; `index` holds rows beyond all.
__global__ void find_first(const int64_t* __restrict__ priority, int64_t stride, const int64_t* __restrict__ inverse,
                           const long long* __restrict__ lowest, int64_t count, long long* __restrict__ index) {
  for (int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x; row < count; row += int64_t{kThreads} * gridDim.x) {
    const int64_t voxel = inverse[row];
    if (priority[row * stride] == lowest[voxel]) atomicMin(index + voxel, static_cast<long long>(row));
  }
}

void choose_by_priority(const Tensor& priority, const Tensor& inverse, cudaStream_t stream, Tensor& index) {
  const int64_t count = inverse.size(0), voxels = index.size(0), stride = priority.stride(0);
  const unsigned blocks = geo3d::blocks_for(count, kThreads);
  Tensor memory = torch::stable::new_empty(index, {voxels});
  long long* const lowest = static_cast<long long*>(memory.mutable_data_ptr());
  long long* const chosen = static_cast<long long*>(index.mutable_data_ptr());
  take_priority<<<geo3d::blocks_for(voxels, kThreads), kThreads, 0, stream>>>(
      geo3d::data<int64_t>(priority), stride, geo3d::data<int64_t>(index), voxels, lowest);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  find_lowest<<<blocks, kThreads, 0, stream>>>(geo3d::data<int64_t>(priority), stride, geo3d::data<int64_t>(inverse),
                                               count, lowest);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  STD_CUDA_CHECK(cudaMemsetAsync(chosen, 0x7F, voxels * sizeof(int64_t), stream));
  find_first<<<blocks, kThreads, 0, stream>>>(geo3d::data<int64_t>(priority), stride, geo3d::data<int64_t>(inverse),
                                              lowest, count, chosen);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void check_points(const Findings* device_findings, int64_t count, cudaStream_t stream) {
  Findings findings;
  STD_CUDA_CHECK(cudaMemcpyAsync(&findings, device_findings, sizeof(findings), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  geo3d::check_points({static_cast<int64_t>(findings.not_finite), findings.first_not_finite,
                       static_cast<int64_t>(findings.too_far), findings.first_too_far},
                      count);
}

std::tuple<Tensor, Tensor, Tensor> voxelize(const Tensor& xyz, const Tensor& offsets, const Tensor& origin,
                                            const std::optional<Tensor>& priority, double voxel_size) {
  const torch::stable::accelerator::DeviceGuard guard(xyz.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(xyz);
  const int64_t count = xyz.size(0), scenes = offsets.size(0) - 1;
  Tensor inverse = torch::stable::new_empty(xyz, {count}, ScalarType::Long);
  const auto of_voxels = [&](int64_t voxels) {
    return std::make_pair(torch::stable::new_empty(xyz, {voxels, 4}, ScalarType::Int),
                          torch::stable::new_empty(xyz, {voxels}, ScalarType::Long));
  };
  if (count == 0) {
    auto [coords, index] = of_voxels(0);
    return {coords, inverse, index};
  }
  STD_TORCH_CHECK(scenes > 0, "voxelize: there are points but no scenes");
  STD_TORCH_CHECK(count <= INT32_MAX, "voxelize: the CUDA kernel takes at most 2^31 - 1 points, got ", count);
  const Tensor scene_offsets = torch::stable::contiguous(offsets);
  const Tensor origins = torch::stable::contiguous(torch::stable::to(origin, ScalarType::Double));
  const Lattice lattice{geo3d::data<int64_t>(scene_offsets), geo3d::data<double>(origins), scenes, voxel_size};
  Tensor cells = torch::stable::new_empty(xyz, {count, 4}, ScalarType::Int);
  int4* const cell_data = reinterpret_cast<int4*>(cells.mutable_data_ptr());
  Tensor memory = geo3d::empty_range(xyz, sizeof(Findings), stream);
  Findings* const findings = static_cast<Findings*>(memory.mutable_data_ptr());
  STD_CUDA_CHECK(cudaMemsetAsync(&findings->first_not_finite, CellRange::kEmpty, 2 * sizeof(long long), stream));
  const unsigned blocks = std::min(geo3d::blocks_for(count, kThreads), geo3d::kCellBlocks);
  if (xyz.scalar_type() == ScalarType::Double) {
    find_cells<double><<<blocks, kThreads, 0, stream>>>(geo3d::data<double>(xyz), xyz.stride(0), xyz.stride(1), count,
                                                        lattice, cell_data, findings);
  } else {
    find_cells<float><<<blocks, kThreads, 0, stream>>>(geo3d::data<float>(xyz), xyz.stride(0), xyz.stride(1), count,
                                                       lattice, cell_data, findings);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  check_points(findings, count, stream);
  const geo3d::SortedCells sorted = geo3d::sort_cells(cells, &findings->range, stream);
  auto [coords, index] = of_voxels(sorted.count);
  write_voxels<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream>>>(
      cell_data, geo3d::data<int64_t>(sorted.order), geo3d::data<int64_t>(sorted.number), count,
      reinterpret_cast<int4*>(coords.mutable_data_ptr()), geo3d::mutable_data<int64_t>(inverse),
      geo3d::mutable_data<int64_t>(index));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (priority) choose_by_priority(*priority, inverse, stream, index);
  return {coords, inverse, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("voxelize", TORCH_BOX(&voxelize));
}
