// CUDA kernels of geo3d::render_rays, its backward, and radiance_gradient. geo3d/ops/render_rays.py tells what they
// compute and has checked the arguments.
//
// One thread for each ray. A gradient is found in a second march, which looks the samples up again: what lies behind one
// is what the first march found in all, less what has been passed.

#include "cuda_common.cuh"

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 128;
constexpr int kBlock = 8;            // BLOCK of render_rays.py
constexpr float kFar = 60.0f;        // FAR of render_rays.py
constexpr int kMaxBlocks = 1 << 15;  // more than any step that is long enough takes

// What rays share; null where it is not given.
struct Scene {
  const float* grid;
  const float *origins, *directions, *target, *target_depth, *jitter;
  const uint8_t* occupancy;
  int64_t rays;
  int64_t stride[2], slot_stride[2];  // along x and y, of the grid and of the gradient, in floats
  int sides[3];
  float step, border, shift, scale, stop, depth_reach;
};

// The tensors that a Scene points to.
struct Kept {
  std::vector<Tensor> tensors;

  const float* values(const OptionalTensor& tensor) {
    if (!tensor.has_value()) return nullptr;
    tensors.push_back(torch::stable::contiguous(*tensor));
    return geo3d::data<float>(tensors.back());
  }
};

struct Sums {
  float colour[3], transmittance, depth, colour_error, depth_error;
};

// One sample.
struct Sample {
  int64_t node, slot;  // where its lowest node lies in the grid and in the gradient
  float share[3];
  float t, length;
};

__device__ float sigmoid(float x) {
  const float small = expf(-fabsf(x));
  return (x > 0.0f ? 1.0f : small) / (1.0f + small);
}

__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// Its samples one after the other.
class March {
 public:
  __device__ March(const Scene& scene, int64_t ray) : scene_(scene) {
    float low = 0.0f, high = FLT_MAX;
    const float side = scene.border > 0 ? kFar : 1.0f;
    for (int axis = 0; axis < 3; ++axis) {
      const float o = origin_[axis] = scene.origins[3 * ray + axis];
      const float d = direction_[axis] = scene.directions[3 * ray + axis];
      if (d == 0.0f) {
        if (!(fabsf(o) <= side)) high = -1.0f;
        continue;
      }
      const float first = (-side - o) / d, second = (side - o) / d;
      low = fmaxf(low, fminf(first, second));
      high = fminf(high, fmaxf(first, second));
    }
    start_ = low;
    end_ = high;
    jitter_ = scene.jitter == nullptr ? 0.5f : scene.jitter[ray];
  }

  // False when there are no more.
  __device__ bool next(Sample& sample) {
    for (;;) {
      if (number_ == kBlock) {
        start_ += kBlock * segment_;
        number_ = 0;
        if (++blocks_ >= kMaxBlocks) return false;
      }
      if (number_ == 0) {
        if (!(start_ < end_)) return false;
        segment_ = scene_.step;
        if (scene_.border > 0) {
          float reach = 0.0f;
          for (int axis = 0; axis < 3; ++axis) reach = fmaxf(reach, fabsf(origin_[axis] + start_ * direction_[axis]));
          if (reach > 1.0f) segment_ *= fmaxf(reach, reach * reach / (4 * scene_.border));
        }
      }
      const float begins = start_ + number_ * segment_;
      ++number_;
      sample.length = fmaxf(fminf(end_ - begins, segment_), 0.0f);
      sample.t = begins + jitter_ * sample.length;
      if (sample.length > 0.0f && place(sample)) return true;
    }
  }

 private:
  // Whether it lies in an occupied cell.
  __device__ bool place(Sample& sample) const {
    float at[3];
    for (int axis = 0; axis < 3; ++axis) at[axis] = origin_[axis] + sample.t * direction_[axis];
    const float span = 1 + scene_.border;
    if (scene_.border > 0) {
      const float reach = fmaxf(fmaxf(fabsf(at[0]), fabsf(at[1])), fmaxf(fabsf(at[2]), 1.0f));
      const float factor = (span - scene_.border / reach) / reach;
      for (float& coordinate : at) coordinate *= factor;
    }
    int cell[3];
    for (int axis = 0; axis < 3; ++axis) {
      const int side = scene_.sides[axis];
      const float node = (at[axis] + span) * (side / (2 * span)) - 0.5f;
      const float inside = fminf(fmaxf(node, 0.0f), static_cast<float>(side - 1));  // NaN becomes 0
      cell[axis] = min(static_cast<int>(inside), side - 2);
      sample.share[axis] = inside - cell[axis];
    }
    sample.node = cell[0] * scene_.stride[0] + cell[1] * scene_.stride[1] + 4 * cell[2];
    sample.slot = cell[0] * scene_.slot_stride[0] + cell[1] * scene_.slot_stride[1] + 4 * cell[2];
    if (scene_.occupancy == nullptr) return true;
    const int64_t row = (cell[0] >> 1) * static_cast<int64_t>(scene_.sides[1] / 2) + (cell[1] >> 1);
    return scene_.occupancy[row * (scene_.sides[2] / 2) + (cell[2] >> 1)] != 0;
  }

  const Scene& scene_;
  float origin_[3], direction_[3];
  float jitter_, start_, end_, segment_ = 0.0f;
  int number_ = 0, blocks_ = 0;
};

// What a node counts; its number's bits say which of the 8 around the sample it is.
__device__ float share_of(const Sample& sample, int corner) {
  return (corner & 4 ? sample.share[0] : 1 - sample.share[0]) * (corner & 2 ? sample.share[1] : 1 - sample.share[1]) *
         (corner & 1 ? sample.share[2] : 1 - sample.share[2]);
}

__device__ int64_t offset_of(const int64_t* stride, int corner) {
  return (corner & 4 ? stride[0] : 0) + (corner & 2 ? stride[1] : 0) + (corner & 1 ? 4 : 0);
}

__device__ void look_up(const Scene& scene, const Sample& sample, float* values) {
  for (int c = 0; c < 4; ++c) values[c] = 0.0f;
#pragma unroll
  for (int corner = 0; corner < 8; ++corner) {
    const float4 node = *reinterpret_cast<const float4*>(scene.grid + sample.node + offset_of(scene.stride, corner));
    const float share = share_of(sample, corner);
    values[0] = fmaf(share, node.x, values[0]);
    values[1] = fmaf(share, node.y, values[1]);
    values[2] = fmaf(share, node.z, values[2]);
    values[3] = fmaf(share, node.w, values[3]);
  }
}

__device__ void add(float* to, const float* values, float share) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    atomicAdd(reinterpret_cast<float4*>(to),
              make_float4(share * values[0], share * values[1], share * values[2], share * values[3]));
    return;
  }
#endif
  for (int c = 0; c < 4; ++c) atomicAdd(to + c, share * values[c]);
}

__device__ float colour_error(const Scene& scene, int64_t ray, const float* colour) {
  if (scene.target == nullptr) return 0.0f;
  float error = 0.0f;
  for (int c = 0; c < 3; ++c) {
    const float distance = colour[c] - scene.target[3 * ray + c];
    error = fmaf(distance, distance, error);
  }
  return error;
}

__device__ float depth_error(const Scene& scene, int64_t ray, float t) {
  if (scene.target_depth == nullptr || !(scene.target_depth[ray] > 0)) return 0.0f;
  return fminf(fabsf(t - scene.target_depth[ray]) / scene.depth_reach, 1.0f);
}

// The first march; how many samples light reaches.
__device__ int render(const Scene& scene, int64_t ray, Sums& sums) {
  sums = Sums{};
  March march(scene, ray);
  Sample sample;
  float light = 1.0f;
  int samples = 0;
  while (light >= scene.stop && march.next(sample)) {
    float values[4];
    look_up(scene, sample, values);
    const float after = light * expf(-scene.scale * softplus(values[0] + scene.shift) * sample.length);
    const float weight = light - after;
    float colour[3];
    for (int c = 0; c < 3; ++c) {
      colour[c] = sigmoid(values[1 + c]);
      sums.colour[c] = fmaf(weight, colour[c], sums.colour[c]);
    }
    sums.depth = fmaf(weight, sample.t, sums.depth);
    sums.colour_error = fmaf(weight, colour_error(scene, ray, colour), sums.colour_error);
    sums.depth_error = fmaf(weight, depth_error(scene, ray, sample.t), sums.depth_error);
    light = after;
    ++samples;
  }
  sums.transmittance = light;
  return samples;
}

// The second march: `by` are derivatives of a loss by the sums.
__device__ void scatter(const Scene& scene, int64_t ray, const Sums& sums, const Sums& by, float* gradient) {
  float behind = by.transmittance * sums.transmittance + by.depth * sums.depth + by.colour_error * sums.colour_error +
                 by.depth_error * sums.depth_error;
  for (int c = 0; c < 3; ++c) behind = fmaf(by.colour[c], sums.colour[c], behind);
  March march(scene, ray);
  Sample sample;
  float light = 1.0f;
  while (light >= scene.stop && march.next(sample)) {
    float values[4];
    look_up(scene, sample, values);
    const float raw = values[0] + scene.shift, factor = scene.scale * sample.length;
    const float after = light * expf(-softplus(raw) * factor);
    const float weight = light - after;
    float colour[3];
    for (int c = 0; c < 3; ++c) colour[c] = sigmoid(values[1 + c]);
    float of_weight = by.depth * sample.t + by.colour_error * colour_error(scene, ray, colour) +
                      by.depth_error * depth_error(scene, ray, sample.t);
    for (int c = 0; c < 3; ++c) of_weight = fmaf(by.colour[c], colour[c], of_weight);
    behind -= weight * of_weight;
    values[0] = (after * of_weight - behind) * sigmoid(raw) * factor;
    for (int c = 0; c < 3; ++c) {
      float of_colour = by.colour[c];
      if (scene.target != nullptr) of_colour += 2 * by.colour_error * (colour[c] - scene.target[3 * ray + c]);
      values[1 + c] = weight * of_colour * colour[c] * (1 - colour[c]);
    }
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
      add(gradient + sample.slot + offset_of(scene.slot_stride, corner), values, share_of(sample, corner));
    }
    light = after;
  }
}

// Where the sums of rays lie, or the derivatives by them; colours of a ray one after the other.
struct Columns {
  float *colour, *transmittance, *depth, *colour_error, *depth_error;
};

__global__ void render_all(const Scene scene, const Columns to) {
  for (int64_t ray = blockIdx.x * int64_t{kThreads} + threadIdx.x; ray < scene.rays;
       ray += int64_t{kThreads} * gridDim.x) {
    Sums sums;
    render(scene, ray, sums);
    for (int c = 0; c < 3; ++c) to.colour[3 * ray + c] = sums.colour[c];
    to.transmittance[ray] = sums.transmittance;
    to.depth[ray] = sums.depth;
    to.colour_error[ray] = sums.colour_error;
    to.depth_error[ray] = sums.depth_error;
  }
}

__global__ void scatter_all(const Scene scene, const float* __restrict__ colour,
                            const float* __restrict__ transmittance, const float* __restrict__ depth,
                            const float* __restrict__ colour_error, const float* __restrict__ depth_error,
                            float* __restrict__ gradient) {
  for (int64_t ray = blockIdx.x * int64_t{kThreads} + threadIdx.x; ray < scene.rays;
       ray += int64_t{kThreads} * gridDim.x) {
    Sums sums;
    render(scene, ray, sums);
    const Sums by{{colour[3 * ray], colour[3 * ray + 1], colour[3 * ray + 2]},
                  transmittance[ray],
                  depth[ray],
                  colour_error[ray],
                  depth_error[ray]};
    scatter(scene, ray, sums, by, gradient);
  }
}

// Of radiance_gradient.
struct Loss {
  const float* weight;
  float background[3];
  float of_colours, of_depths;
};

__global__ void learn_all(const Scene scene, const Loss loss, int64_t parts, int64_t part_stride,
                          float* __restrict__ gradient, const Columns to, float* __restrict__ losses,
                          int32_t* __restrict__ counts) {
  const float each = 1.0f / scene.rays;
  for (int64_t ray = blockIdx.x * int64_t{kThreads} + threadIdx.x; ray < scene.rays;
       ray += int64_t{kThreads} * gridDim.x) {
    Sums sums;
    counts[ray] = render(scene, ray, sums);
    const float scale = loss.weight == nullptr ? 1.0f : loss.weight[ray];
    const float known = scene.target_depth != nullptr && scene.target_depth[ray] > 0 ? loss.of_depths : 0.0f;
    Sums by{{}, known * each, 0.0f, scale * loss.of_colours * each, known * each};
    float squares = 0.0f;
    for (int c = 0; c < 3; ++c) {
      const float distance =
          sums.colour[c] + sums.transmittance * loss.background[c] - scene.target[3 * ray + c];
      squares = fmaf(distance, distance, squares);
      by.colour[c] = 2 * scale * each * distance;
      by.transmittance += by.colour[c] * loss.background[c];
      to.colour[3 * ray + c] = sums.colour[c];
    }
    scatter(scene, ray, sums, by, gradient + ray * parts / scene.rays * part_stride);
    to.transmittance[ray] = sums.transmittance;
    to.depth[ray] = sums.depth;
    losses[ray] = scale * (squares + loss.of_colours * sums.colour_error) +
                  known * (sums.depth_error + sums.transmittance);
  }
}

// A grid whose nodes can be loaded whole, copied only if need be.
Tensor loadable(const Tensor& grid) {
  const bool packed = grid.stride(3) == 1 && grid.stride(2) == 4 && grid.stride(1) % 4 == 0 && grid.stride(0) % 4 == 0;
  const bool aligned = reinterpret_cast<uintptr_t>(grid.const_data_ptr()) % sizeof(float4) == 0;
  return packed && aligned ? grid : torch::stable::clone(torch::stable::contiguous(grid));
}

Scene scene_of(const Tensor& grid, const Tensor& origins, const Tensor& directions, const OptionalTensor& target,
               const OptionalTensor& target_depth, const OptionalTensor& jitter, const OptionalTensor& occupancy,
               double step, double border, double density_shift, double density_scale, double stop, double depth_reach,
               Kept& kept) {
  Scene scene{};
  kept.tensors.push_back(loadable(grid));
  const Tensor& nodes = kept.tensors.back();
  scene.grid = geo3d::data<float>(nodes);
  for (int axis = 0; axis < 2; ++axis) scene.stride[axis] = nodes.stride(axis);
  for (int axis = 0; axis < 3; ++axis) scene.sides[axis] = static_cast<int>(grid.size(axis));
  scene.origins = kept.values(origins);
  scene.directions = kept.values(directions);
  scene.target = kept.values(target);
  scene.target_depth = kept.values(target_depth);
  scene.jitter = kept.values(jitter);
  if (occupancy.has_value()) {
    kept.tensors.push_back(torch::stable::contiguous(*occupancy));
    scene.occupancy = geo3d::data<uint8_t>(kept.tensors.back());
  }
  scene.rays = origins.size(0);
  scene.step = static_cast<float>(step);
  scene.border = static_cast<float>(border);
  scene.shift = static_cast<float>(density_shift);
  scene.scale = static_cast<float>(density_scale);
  scene.stop = static_cast<float>(stop);
  scene.depth_reach = static_cast<float>(depth_reach);
  return scene;
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors render_rays(const Tensor& grid, const Tensor& origins, const Tensor& directions,
                        const OptionalTensor& target, const OptionalTensor& target_depth, const OptionalTensor& jitter,
                        const OptionalTensor& occupancy, double step, double border, double density_shift,
                        double density_scale, double stop, double depth_reach) {
  const torch::stable::accelerator::DeviceGuard guard(grid.get_device_index());
  Kept kept;
  const Scene scene = scene_of(grid, origins, directions, target, target_depth, jitter, occupancy, step, border,
                               density_shift, density_scale, stop, depth_reach, kept);
  Tensor colour = torch::stable::new_empty(grid, {scene.rays, 3});
  Tensor transmittance = torch::stable::new_empty(grid, {scene.rays});
  Tensor depth = torch::stable::new_empty(grid, {scene.rays});
  Tensor colour_errors = torch::stable::new_empty(grid, {scene.rays});
  Tensor depth_errors = torch::stable::new_empty(grid, {scene.rays});
  const Columns to{geo3d::mutable_data<float>(colour), geo3d::mutable_data<float>(transmittance),
                   geo3d::mutable_data<float>(depth), geo3d::mutable_data<float>(colour_errors),
                   geo3d::mutable_data<float>(depth_errors)};
  if (scene.rays > 0) {
    render_all<<<geo3d::blocks_for(scene.rays, kThreads), kThreads, 0, geo3d::current_stream(grid)>>>(scene, to);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {colour, transmittance, depth, colour_errors, depth_errors};
}

Tensor render_rays_backward(const Tensor& grad_colour, const Tensor& grad_transmittance, const Tensor& grad_depth,
                            const Tensor& grad_colour_error, const Tensor& grad_depth_error, const Tensor& grid,
                            const Tensor& origins, const Tensor& directions, const OptionalTensor& target,
                            const OptionalTensor& target_depth, const OptionalTensor& jitter,
                            const OptionalTensor& occupancy, double step, double border, double density_shift,
                            double density_scale, double stop, double depth_reach) {
  const torch::stable::accelerator::DeviceGuard guard(grid.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(grid);
  Kept kept;
  Scene scene = scene_of(grid, origins, directions, target, target_depth, jitter, occupancy, step, border,
                         density_shift, density_scale, stop, depth_reach, kept);
  Tensor result = torch::stable::new_empty(grid, {grid.size(0), grid.size(1), grid.size(2), 4});
  for (int axis = 0; axis < 2; ++axis) scene.slot_stride[axis] = result.stride(axis);
  STD_CUDA_CHECK(cudaMemsetAsync(result.mutable_data_ptr(), 0, result.numel() * sizeof(float), stream));
  if (scene.rays > 0) {
    scatter_all<<<geo3d::blocks_for(scene.rays, kThreads), kThreads, 0, stream>>>(
        scene, kept.values(grad_colour), kept.values(grad_transmittance), kept.values(grad_depth),
        kept.values(grad_colour_error), kept.values(grad_depth_error), geo3d::mutable_data<float>(result));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result;
}

FiveTensors radiance_gradient(Tensor gradient, const Tensor& grid, const Tensor& origins, const Tensor& directions,
                              const Tensor& target, const OptionalTensor& target_depth, const OptionalTensor& weight,
                              const OptionalTensor& jitter, const OptionalTensor& occupancy, double step, double border,
                              double density_shift, double density_scale, double stop, double depth_reach,
                              const std::vector<double>& background, double colour_error_weight,
                              double depth_error_weight) {
  const torch::stable::accelerator::DeviceGuard guard(grid.get_device_index());
  Kept kept;
  Scene scene = scene_of(grid, origins, directions, target, target_depth, jitter, occupancy, step, border,
                         density_shift, density_scale, stop, depth_reach, kept);
  for (int axis = 0; axis < 2; ++axis) scene.slot_stride[axis] = gradient.stride(1 + axis);
  Loss loss{};
  loss.weight = kept.values(weight);
  for (int c = 0; c < 3; ++c) loss.background[c] = static_cast<float>(background[c]);
  loss.of_colours = static_cast<float>(colour_error_weight);
  loss.of_depths = static_cast<float>(depth_error_weight);
  Tensor colour = torch::stable::new_empty(grid, {scene.rays, 3});
  Tensor transmittance = torch::stable::new_empty(grid, {scene.rays});
  Tensor depth = torch::stable::new_empty(grid, {scene.rays});
  Tensor losses = torch::stable::new_empty(grid, {scene.rays});
  Tensor samples = torch::stable::new_empty(grid, {scene.rays}, ScalarType::Int);
  const Columns to{geo3d::mutable_data<float>(colour), geo3d::mutable_data<float>(transmittance),
                   geo3d::mutable_data<float>(depth), nullptr, nullptr};
  if (scene.rays > 0) {
    learn_all<<<geo3d::blocks_for(scene.rays, kThreads), kThreads, 0, geo3d::current_stream(grid)>>>(
        scene, loss, gradient.size(0), gradient.stride(0), geo3d::mutable_data<float>(gradient), to,
        geo3d::mutable_data<float>(losses), geo3d::mutable_data<int32_t>(samples));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {colour, transmittance, depth, losses, samples};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("render_rays", TORCH_BOX(&render_rays));
  m.impl("render_rays_backward", TORCH_BOX(&render_rays_backward));
  m.impl("radiance_gradient", TORCH_BOX(&radiance_gradient));
}
