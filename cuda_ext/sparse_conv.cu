// CUDA kernels of geo3d::sparse_conv and its weight's gradient. geo3d/ops/sparse_conv.py tells what they compute and has
// checked the arguments.
//
// Tiled products in float32 without atomics: every sum is one thread's, in a fixed order.

#include <optional>

#include "cuda_common.cuh"

namespace {

using torch::stable::Tensor;

constexpr int kTile = 64;   // outputs by columns (or channels by columns) of a block
constexpr int kDepth = 16;  // channels (or outputs) that are multiplied at a time
constexpr int kSide = 16;   // threads of a block along each side of its tile
constexpr int kEach = kTile / kSide;  // sums of a thread along each side

// kEach x kEach products of a column of `left` and a row of `right`, for kDepth of them.
__device__ void multiply(const float (&left)[kDepth][kTile + 1], const float (&right)[kDepth][kTile],
                         float (&sums)[kEach][kEach]) {
  for (int d = 0; d < kDepth; ++d) {
    float a[kEach], b[kEach];
    for (int i = 0; i < kEach; ++i) {
      a[i] = left[d][threadIdx.y + i * kSide];
      b[i] = right[d][threadIdx.x + i * kSide];
    }
    for (int i = 0; i < kEach; ++i) {
      for (int j = 0; j < kEach; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
    }
  }
}

// A block sums kTile outputs by kTile columns over all offsets.
template <typename Scalar>
__global__ void convolve(const Scalar* __restrict__ feats, int64_t inputs, const Scalar* __restrict__ weight,
                         const int32_t* __restrict__ neighbours, int64_t outputs, int offsets, int channels,
                         int columns, Scalar* __restrict__ result) {
  __shared__ float left[kDepth][kTile + 1], right[kDepth][kTile];
  __shared__ int32_t rows[kTile];
  const int thread = threadIdx.y * kSide + threadIdx.x;
  const int64_t first_output = int64_t{blockIdx.x} * kTile;
  const int first_column = blockIdx.y * kTile;
  float sums[kEach][kEach] = {};
  for (int k = 0; k < offsets; ++k) {
    bool found = false;
    if (thread < kTile) {
      const int64_t output = first_output + thread;
      const int32_t row = output < outputs ? neighbours[k * outputs + output] : -1;
      found = row >= 0 && row < inputs;
      rows[thread] = found ? row : -1;
    }
    if (!__syncthreads_or(found)) continue;
    for (int channel = 0; channel < channels; channel += kDepth) {
      for (int i = thread; i < kTile * kDepth; i += kSide * kSide) {
        const int m = i / kDepth, d = i % kDepth;
        const bool inside = rows[m] >= 0 && channel + d < channels;
        left[d][m] = inside ? static_cast<float>(feats[int64_t{rows[m]} * channels + channel + d]) : 0.0f;
      }
      for (int i = thread; i < kTile * kDepth; i += kSide * kSide) {
        const int d = i / kTile, n = i % kTile;
        const bool inside = channel + d < channels && first_column + n < columns;
        const int64_t place = (int64_t{k} * channels + channel + d) * columns + first_column + n;
        right[d][n] = inside ? static_cast<float>(weight[place]) : 0.0f;
      }
      __syncthreads();
      multiply(left, right, sums);
      __syncthreads();
    }
  }
  for (int i = 0; i < kEach; ++i) {
    const int64_t output = first_output + threadIdx.y + i * kSide;
    for (int j = 0; j < kEach; ++j) {
      const int column = first_column + threadIdx.x + j * kSide;
      if (output < outputs && column < columns) result[output * columns + column] = static_cast<Scalar>(sums[i][j]);
    }
  }
}

// A block sums kTile channels by kTile columns of one offset's gradient over all outputs.
template <typename Scalar>
__global__ void sum_weight_gradient(const Scalar* __restrict__ feats, int64_t inputs,
                                    const Scalar* __restrict__ gradient, const int32_t* __restrict__ neighbours,
                                    int64_t outputs, int channels, int columns, Scalar* __restrict__ result) {
  __shared__ float left[kDepth][kTile + 1], right[kDepth][kTile];
  __shared__ int32_t rows[kDepth];
  const int thread = threadIdx.y * kSide + threadIdx.x;
  const int first_channel = blockIdx.x * kTile, first_column = blockIdx.y * kTile;
  const int64_t k = blockIdx.z;
  float sums[kEach][kEach] = {};
  for (int64_t first_output = 0; first_output < outputs; first_output += kDepth) {
    bool found = false;
    if (thread < kDepth) {
      const int64_t output = first_output + thread;
      const int32_t row = output < outputs ? neighbours[k * outputs + output] : -1;
      found = row >= 0 && row < inputs;
      rows[thread] = found ? row : -1;
    }
    if (!__syncthreads_or(found)) continue;
    for (int i = thread; i < kTile * kDepth; i += kSide * kSide) {
      const int d = i / kTile, n = i % kTile;
      const bool found_here = rows[d] >= 0;
      const int channel = first_channel + n, column = first_column + n;
      left[d][n] = found_here && channel < channels
                       ? static_cast<float>(feats[int64_t{rows[d]} * channels + channel])
                       : 0.0f;
      right[d][n] = found_here && column < columns
                        ? static_cast<float>(gradient[(first_output + d) * columns + column])
                        : 0.0f;
    }
    __syncthreads();
    multiply(left, right, sums);
    __syncthreads();
  }
  for (int i = 0; i < kEach; ++i) {
    const int channel = first_channel + threadIdx.y + i * kSide;
    for (int j = 0; j < kEach; ++j) {
      const int column = first_column + threadIdx.x + j * kSide;
      if (channel < channels && column < columns) {
        result[(k * channels + channel) * columns + column] = static_cast<Scalar>(sums[i][j]);
      }
    }
  }
}

unsigned tiles(int64_t size) { return static_cast<unsigned>((size + kTile - 1) / kTile); }

Tensor sparse_conv(const Tensor& feats, const Tensor& weight, const Tensor& neighbours,
                   const std::optional<Tensor>& /*transposed*/) {
  const torch::stable::accelerator::DeviceGuard guard(feats.get_device_index());
  const Tensor inputs = torch::stable::contiguous(feats), weights = torch::stable::contiguous(weight);
  const Tensor map = torch::stable::contiguous(neighbours);
  Tensor result = torch::stable::new_empty(feats, {map.size(1), weight.size(2)});
  if (result.numel() == 0) return result;
  const dim3 grid(tiles(result.size(0)), tiles(result.size(1)));
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    convolve<Scalar><<<grid, dim3(kSide, kSide), 0, geo3d::current_stream(feats)>>>(
        geo3d::data<Scalar>(inputs), inputs.size(0), geo3d::data<Scalar>(weights), geo3d::data<int32_t>(map),
        map.size(1), static_cast<int>(map.size(0)), static_cast<int>(inputs.size(1)),
        static_cast<int>(weights.size(2)), geo3d::mutable_data<Scalar>(result));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

Tensor sparse_conv_weight_gradient(const Tensor& feats, const Tensor& gradient, const Tensor& neighbours,
                                   const std::optional<Tensor>& /*transposed*/) {
  const torch::stable::accelerator::DeviceGuard guard(feats.get_device_index());
  const Tensor inputs = torch::stable::contiguous(feats), gradients = torch::stable::contiguous(gradient);
  const Tensor map = torch::stable::contiguous(neighbours);
  Tensor result = torch::stable::new_empty(feats, {map.size(0), feats.size(1), gradient.size(1)});
  if (result.numel() == 0) return result;
  const dim3 grid(tiles(result.size(1)), tiles(result.size(2)), static_cast<unsigned>(map.size(0)));
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    sum_weight_gradient<Scalar><<<grid, dim3(kSide, kSide), 0, geo3d::current_stream(feats)>>>(
        geo3d::data<Scalar>(inputs), inputs.size(0), geo3d::data<Scalar>(gradients), geo3d::data<int32_t>(map),
        map.size(1), static_cast<int>(inputs.size(1)), static_cast<int>(gradients.size(1)),
        geo3d::mutable_data<Scalar>(result));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("sparse_conv_weight_gradient", TORCH_BOX(&sparse_conv_weight_gradient));
}
