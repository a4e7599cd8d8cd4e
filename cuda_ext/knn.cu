// CUDA kernel of geo3d::knn: all points of a query's scene, a tile at a time. geo3d/ops/knn.py tells what it computes and
// has checked the arguments.

#include <tuple>

#include "cuda_common.cuh"

namespace {

using torch::stable::Tensor;

constexpr int kThreads = 128;  // queries of a block, and points of a tile
constexpr int kMaxNeighbours = 64;

// Sums and products are rounded one by one, as in the reference.
__device__ double squared_norm(double x, double y, double z) {
  return __dadd_rn(__dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y)), __dmul_rn(z, z));
}
__device__ float squared_norm(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

// One thread for each query. Squared distances are of type Real.
template <typename Real>
__global__ void search(const float* __restrict__ query, int64_t queries, const float* __restrict__ points,
                       int64_t count, const int64_t* __restrict__ query_offsets,
                       const int64_t* __restrict__ point_offsets, int64_t scenes, int k,
                       int64_t* __restrict__ out_index, float* __restrict__ out_distance) {
  __shared__ float tile[kThreads][3];
  const int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const bool active = row < queries;
  // Queries ascend by scene, so the scenes of a block's first and last query bound the points that it needs.
  const int64_t last_row = min(queries - 1, blockIdx.x * int64_t{kThreads} + kThreads - 1);
  const int64_t begin = point_offsets[geo3d::scene_of(query_offsets, scenes, blockIdx.x * int64_t{kThreads})];
  const int64_t end = min(count, point_offsets[geo3d::scene_of(query_offsets, scenes, last_row) + 1]);
  int64_t first = 0, last = 0;
  Real x = 0, y = 0, z = 0;
  if (active) {
    const int64_t scene = geo3d::scene_of(query_offsets, scenes, row);
    first = point_offsets[scene];
    last = point_offsets[scene + 1];
    x = query[3 * row];
    y = query[3 * row + 1];
    z = query[3 * row + 2];
  }
  Real distance[kMaxNeighbours];
  int64_t index[kMaxNeighbours];
  int found = 0;
  for (int64_t start = max(begin, int64_t{0}); start < end; start += kThreads) {
    __syncthreads();
    const int64_t loaded = start + threadIdx.x;
    if (loaded < end) {
      for (int axis = 0; axis < 3; ++axis) tile[threadIdx.x][axis] = points[3 * loaded + axis];
    }
    __syncthreads();
    const int64_t stop = min(min(start + kThreads, end), last);
    for (int64_t point = max(start, first); point < stop; ++point) {
      const float* xyz = tile[point - start];
      const Real squared = squared_norm(x - xyz[0], y - xyz[1], z - xyz[2]);
      // Rows ascend, so an equal distance comes after the one that is there.
      if (found == k && !(squared < distance[k - 1])) continue;
      if (!(squared >= 0)) continue;  // not a number
      int place = found < k ? found++ : k - 1;
      for (; place > 0 && squared < distance[place - 1]; --place) {
        distance[place] = distance[place - 1];
        index[place] = index[place - 1];
      }
      distance[place] = squared;
      index[place] = point;
    }
  }
  if (!active) return;
  for (int place = 0; place < k; ++place) {
    out_index[row * k + place] = place < found ? index[place] : -1;
    out_distance[row * k + place] = place < found ? static_cast<float>(distance[place]) : INFINITY;
  }
}

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& points, const Tensor& query_offsets,
                               const Tensor& point_offsets, int64_t k, bool float32_order) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const Tensor queries = torch::stable::contiguous(query), targets = torch::stable::contiguous(points);
  const Tensor queries_of = torch::stable::contiguous(query_offsets);
  const Tensor points_of = torch::stable::contiguous(point_offsets);
  const int64_t count = queries.size(0), scenes = queries_of.size(0) - 1;
  Tensor index = torch::stable::new_empty(query_offsets, {count, k});
  Tensor distance = torch::stable::new_empty(query, {count, k});
  if (count == 0) return {index, distance};
  STD_TORCH_CHECK(k <= kMaxNeighbours, "knn: the CUDA kernel finds at most ", kMaxNeighbours, " neighbours");
  STD_TORCH_CHECK(scenes > 0, "knn: there are queries but no scenes");
  const auto launch = [&](auto real) {
    using Real = decltype(real);
    search<Real><<<geo3d::blocks_for(count, kThreads), kThreads, 0, geo3d::current_stream(query)>>>(
        geo3d::data<float>(queries), count, geo3d::data<float>(targets), targets.size(0),
        geo3d::data<int64_t>(queries_of), geo3d::data<int64_t>(points_of), scenes, static_cast<int>(k),
        geo3d::mutable_data<int64_t>(index), geo3d::mutable_data<float>(distance));
  };
  float32_order ? launch(float{}) : launch(double{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {index, distance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("knn", TORCH_BOX(&knn));
}
