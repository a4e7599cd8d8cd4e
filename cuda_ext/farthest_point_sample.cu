// CUDA kernel of geo3d::farthest_point_sample: a block for each cloud. geo3d/ops/farthest_point_sample.py tells what it
// computes and has checked the arguments.

#include <optional>

#include "cuda_common.cuh"
#include "farthest_point_sample.h"

namespace {

using geo3d::FarthestOrder;
using torch::stable::Tensor;

constexpr int kThreads = 512;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xFFFFFFFF;

// Sums and products are rounded one by one, as in the reference.
__device__ float squared_norm(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

// Larger for larger distances, and for lower ranks among equal ones; never zero.
__device__ unsigned long long key_of(float distance, int32_t rank) {
  return static_cast<unsigned long long>(__float_as_uint(distance)) << 32 | ~static_cast<uint32_t>(rank);
}

__device__ unsigned long long largest_of_warp(unsigned long long key) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAll, key, lanes);
    key = max(key, other);
  }
  return key;
}

// `distance` is what a point has to the samples so far; below zero for points that are passed over.
__global__ void sample(const float* __restrict__ points, int64_t rows, const int64_t* __restrict__ offsets,
                       const int64_t* __restrict__ start, int64_t clouds, int64_t count, bool published_ties,
                       bool skip_near_origin, float* __restrict__ distance, int64_t* __restrict__ samples) {
  __shared__ unsigned long long best[kWarps];
  for (int64_t cloud = blockIdx.x; cloud < clouds; cloud += gridDim.x) {
    const int64_t first = min(max(offsets[cloud], int64_t{0}), rows);
    const int64_t size = min(max(offsets[cloud + 1], first), rows) - first;
    const float* const xyz = points + 3 * first;
    float* const nearest = distance + first;
    const FarthestOrder ties(size, published_ties);
    int64_t row = start == nullptr || size == 0 ? 0 : min(max(start[cloud], int64_t{0}), size - 1);
    for (int64_t place = 0; place < count; ++place) {
      if (threadIdx.x == 0) samples[cloud * count + place] = size > 0 ? first + row : -1;
      if (place == count - 1 || size == 0) continue;
      const float x = xyz[3 * row], y = xyz[3 * row + 1], z = xyz[3 * row + 2];
      unsigned long long key = 0;
      for (int64_t i = threadIdx.x; i < size; i += kThreads) {
        const float px = xyz[3 * i], py = xyz[3 * i + 1], pz = xyz[3 * i + 2];
        float shortest = place > 0 ? nearest[i] : geo3d::kFarthestStart;
        if (place == 0 && skip_near_origin && squared_norm(px, py, pz) <= geo3d::kNearOrigin) shortest = -1;
        const float squared = squared_norm(__fsub_rn(px, x), __fsub_rn(py, y), __fsub_rn(pz, z));
        if (squared < shortest) shortest = squared;
        nearest[i] = shortest;
        if (shortest >= 0) key = max(key, key_of(shortest, ties.rank(static_cast<int32_t>(i))));
      }
      key = largest_of_warp(key);
      __syncthreads();  // all have read what is overwritten here
      if (threadIdx.x % kWarp == 0) best[threadIdx.x / kWarp] = key;
      __syncthreads();
      key = largest_of_warp(best[threadIdx.x % kWarps]);
      row = key == 0 ? 0 : ties.row(static_cast<int32_t>(~static_cast<uint32_t>(key)));
    }
  }
}

Tensor farthest_point_sample(const Tensor& points, const Tensor& offsets, std::optional<Tensor> start, int64_t count,
                             bool published_ties, bool skip_near_origin) {
  const torch::stable::accelerator::DeviceGuard guard(points.get_device_index());
  const Tensor packed = torch::stable::contiguous(points), clouds_of = torch::stable::contiguous(offsets);
  std::optional<Tensor> starts;
  if (start.has_value()) starts = torch::stable::contiguous(*start);
  const int64_t rows = packed.size(0), clouds = clouds_of.size(0) - 1;
  STD_TORCH_CHECK(rows <= geo3d::kFarthestLargest, "farthest_point_sample: the CUDA kernel takes at most ",
                  geo3d::kFarthestLargest, " points, got ", rows);
  Tensor samples = torch::stable::new_empty(offsets, {clouds * count});
  if (clouds == 0) return samples;
  Tensor distance = torch::stable::new_empty(points, {rows});
  sample<<<geo3d::blocks_for(clouds, 1), kThreads, 0, geo3d::current_stream(points)>>>(
      geo3d::data<float>(packed), rows, geo3d::data<int64_t>(clouds_of),
      starts.has_value() ? geo3d::data<int64_t>(*starts) : nullptr, clouds, count, published_ties, skip_near_origin,
      geo3d::mutable_data<float>(distance), geo3d::mutable_data<int64_t>(samples));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return samples;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&farthest_point_sample));
}
