// CUDA kernels of geo3d::radiance_step. geo3d/ops/radiance_step.py tells what it computes and has checked the arguments.
//
// One thread for each node. The total variation's gradient is added to the gradient's first part before any node moves.

#include "cuda_common.cuh"

#include <cmath>
#include <cstdint>
#include <optional>

namespace {

using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kChannels = 4;
constexpr int kSegment = 8;  // SEGMENT of radiance_step.py, nodes

// Nodes of a tensor (X, Y, Z, 4).
struct Nodes {
  float* data;
  int64_t along_x, along_y;

  __device__ float* at(int64_t x, int64_t y, int64_t z) const {
    return data + x * along_x + y * along_y + z * kChannels;
  }
};

struct Problem {
  Nodes grid, gradient, mean, square;
  int64_t parts, part_stride;
  int64_t sides[3];
  const uint8_t* occupancy;  // null: all nodes are stepped
  float rate[kChannels], smoothness[kChannels];
  float mean_decay, square_decay, correction, epsilon;  // correction: 1 / (1 - square_decay^number)
};

struct Place {
  int64_t x, y, z;
};

__device__ Place place_of(const Problem& problem, int64_t node) {
  const int64_t row = node / problem.sides[2];
  return {row / problem.sides[1], row % problem.sides[1], node % problem.sides[2]};
}

// Whether a node's segment touches an occupied cell: node i touches cells (i - 1) / 2 and i / 2.
__device__ bool stepped(const Problem& problem, const Place& place) {
  if (problem.occupancy == nullptr) return true;
  const int64_t begin = place.z / kSegment * kSegment, end = min(begin + kSegment, problem.sides[2]) - 1;
  const int64_t low[3] = {place.x, place.y, begin}, high[3] = {place.x, place.y, end};
  int64_t first[3], last[3], cells[3];
  for (int axis = 0; axis < 3; ++axis) {
    cells[axis] = problem.sides[axis] / 2;
    first[axis] = low[axis] > 0 ? (low[axis] - 1) / 2 : 0;
    last[axis] = min(high[axis] / 2, cells[axis] - 1);
  }
  for (int64_t x = first[0]; x <= last[0]; ++x) {
    for (int64_t y = first[1]; y <= last[1]; ++y) {
      for (int64_t z = first[2]; z <= last[2]; ++z) {
        if (problem.occupancy[(x * cells[1] + y) * cells[2] + z] != 0) return true;
      }
    }
  }
  return false;
}

__global__ void smooth(const Problem problem, int64_t nodes) {
  for (int64_t node = blockIdx.x * int64_t{kThreads} + threadIdx.x; node < nodes;
       node += int64_t{kThreads} * gridDim.x) {
    const Place place = place_of(problem, node);
    if (!stepped(problem, place)) continue;
    const float* here = problem.grid.at(place.x, place.y, place.z);
    const int64_t at[3] = {place.x, place.y, place.z};
    const int64_t along[3] = {problem.grid.along_x, problem.grid.along_y, kChannels};
    float* to = problem.gradient.at(place.x, place.y, place.z);
    for (int c = 0; c < kChannels; ++c) {
      float sum = 0.0f;
      for (int axis = 0; axis < 3; ++axis) {
        if (at[axis] > 0) sum += here[c] - here[c - along[axis]];
        if (at[axis] + 1 < problem.sides[axis]) sum += here[c] - here[c + along[axis]];
      }
      to[c] = fmaf(problem.smoothness[c], sum, to[c]);
    }
  }
}

__global__ void step(const Problem problem, int64_t nodes) {
  for (int64_t node = blockIdx.x * int64_t{kThreads} + threadIdx.x; node < nodes;
       node += int64_t{kThreads} * gridDim.x) {
    const Place place = place_of(problem, node);
    if (!stepped(problem, place)) continue;
    float* value = problem.grid.at(place.x, place.y, place.z);
    float* mean = problem.mean.at(place.x, place.y, place.z);
    float* square = problem.square.at(place.x, place.y, place.z);
    float* gradient = problem.gradient.at(place.x, place.y, place.z);
    for (int c = 0; c < kChannels; ++c) {
      float total = 0.0f;
      for (int64_t part = 0; part < problem.parts; ++part) {
        total += gradient[part * problem.part_stride + c];
        gradient[part * problem.part_stride + c] = 0.0f;
      }
      mean[c] = problem.mean_decay * mean[c] + (1 - problem.mean_decay) * total;
      square[c] = problem.square_decay * square[c] + (1 - problem.square_decay) * (total * total);
      value[c] -= problem.rate[c] * mean[c] / (sqrtf(square[c] * problem.correction) + problem.epsilon);
    }
  }
}

Nodes nodes_of(Tensor& tensor, int64_t first) {
  return {geo3d::mutable_data<float>(tensor), tensor.stride(first), tensor.stride(first + 1)};
}

void radiance_step(Tensor grid, Tensor gradient, Tensor mean, Tensor square, const std::optional<Tensor>& occupancy,
                   int64_t number, double density_rate, double colour_rate, double density_smoothness,
                   double colour_smoothness, double mean_decay, double square_decay, double epsilon) {
  const torch::stable::accelerator::DeviceGuard guard(grid.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(grid);
  Problem problem{};
  problem.grid = nodes_of(grid, 0);
  problem.gradient = nodes_of(gradient, 1);
  problem.mean = nodes_of(mean, 0);
  problem.square = nodes_of(square, 0);
  problem.parts = gradient.size(0);
  problem.part_stride = gradient.stride(0);
  for (int axis = 0; axis < 3; ++axis) problem.sides[axis] = grid.size(axis);
  std::optional<Tensor> cells;
  if (occupancy.has_value()) {
    cells = torch::stable::contiguous(*occupancy);
    problem.occupancy = geo3d::data<uint8_t>(*cells);
  }
  const double correction = 1 - std::pow(mean_decay, number);
  for (int c = 0; c < kChannels; ++c) {
    problem.rate[c] = static_cast<float>((c == 0 ? density_rate : colour_rate) / correction);
    problem.smoothness[c] = static_cast<float>(c == 0 ? density_smoothness : colour_smoothness);
  }
  problem.mean_decay = static_cast<float>(mean_decay);
  problem.square_decay = static_cast<float>(square_decay);
  problem.correction = static_cast<float>(1 / (1 - std::pow(square_decay, number)));
  problem.epsilon = static_cast<float>(epsilon);
  const int64_t nodes = grid.size(0) * grid.size(1) * grid.size(2);
  if (density_smoothness > 0 || colour_smoothness > 0) {
    smooth<<<geo3d::blocks_for(nodes, kThreads), kThreads, 0, stream>>>(problem, nodes);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  step<<<geo3d::blocks_for(nodes, kThreads), kThreads, 0, stream>>>(problem, nodes);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("radiance_step", TORCH_BOX(&radiance_step));
}
