// CUDA kernels of geo3d::interpolate and its gradients. geo3d/ops/interpolate.py tells what they compute and has checked
// the arguments.

#include "cuda_common.cuh"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

Tensor float_rows(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Float));
}

// One thread for each query and channel.
template <typename Scalar>
__global__ void gather(const Scalar* __restrict__ feats, int64_t points, const int64_t* __restrict__ index,
                       const float* __restrict__ weight, int64_t total, int64_t neighbours, int64_t channels,
                       Scalar* __restrict__ result) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    const int64_t query = i / channels, channel = i % channels;
    float sum = 0.0f;
    for (int64_t pair = query * neighbours; pair < (query + 1) * neighbours; ++pair) {
      const int64_t point = index[pair];
      if (point >= 0 && point < points) {
        sum = fmaf(weight[pair], static_cast<float>(feats[point * channels + channel]), sum);
      }
    }
    result[i] = static_cast<Scalar>(sum);
  }
}

Tensor interpolate(const Tensor& feats, const Tensor& index, const Tensor& weight) {
  const torch::stable::accelerator::DeviceGuard guard(feats.get_device_index());
  const Tensor rows = torch::stable::contiguous(feats), places = torch::stable::contiguous(index);
  const Tensor factors = float_rows(weight);
  Tensor result = torch::stable::new_empty(feats, {index.size(0), feats.size(1)});
  if (result.numel() == 0) return result;
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    gather<Scalar>
        <<<geo3d::blocks_for(result.numel(), kThreads), kThreads, 0, geo3d::current_stream(feats)>>>(
            geo3d::data<Scalar>(rows), rows.size(0), geo3d::data<int64_t>(places), geo3d::data<float>(factors),
            result.numel(), index.size(1), feats.size(1), geo3d::mutable_data<Scalar>(result));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

// One thread for each query and channel; sums of a point meet in memory, in any order.
template <typename Scalar>
__global__ void scatter(const Scalar* __restrict__ gradient, const int64_t* __restrict__ index,
                        const float* __restrict__ weight, int64_t total, int64_t neighbours, int64_t channels,
                        int64_t points, float* __restrict__ sums) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    const int64_t query = i / channels, channel = i % channels;
    const float value = static_cast<float>(gradient[i]);
    for (int64_t pair = query * neighbours; pair < (query + 1) * neighbours; ++pair) {
      const int64_t point = index[pair];
      if (point >= 0 && point < points) atomicAdd(sums + point * channels + channel, weight[pair] * value);
    }
  }
}

Tensor feats_gradient(const Tensor& gradient, const Tensor& index, const Tensor& weight, int64_t count) {
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  const cudaStream_t stream = geo3d::current_stream(gradient);
  const Tensor rows = torch::stable::contiguous(gradient), places = torch::stable::contiguous(index);
  const Tensor factors = float_rows(weight);
  Tensor sums = torch::stable::new_empty(gradient, {count, gradient.size(1)}, ScalarType::Float);
  if (sums.numel() > 0) {
    STD_CUDA_CHECK(cudaMemsetAsync(sums.mutable_data_ptr(), 0, sums.numel() * sizeof(float), stream));
  }
  if (sums.numel() > 0 && gradient.numel() > 0) {
    geo3d::for_dtype(gradient.scalar_type(), [&](auto scalar) {
      using Scalar = decltype(scalar);
      scatter<Scalar><<<geo3d::blocks_for(gradient.numel(), kThreads), kThreads, 0, stream>>>(
          geo3d::data<Scalar>(rows), geo3d::data<int64_t>(places), geo3d::data<float>(factors), gradient.numel(),
          index.size(1), gradient.size(1), count, geo3d::mutable_data<float>(sums));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return torch::stable::to(sums, gradient.scalar_type());
}

// One warp for each pair.
template <typename Scalar>
__global__ void dot(const Scalar* __restrict__ feats, int64_t points, const Scalar* __restrict__ gradient,
                    const int64_t* __restrict__ index, int64_t pairs, int64_t neighbours, int64_t channels,
                    Scalar* __restrict__ result) {
  const int64_t warps = int64_t{kThreads} / 32 * gridDim.x;
  const int lane = threadIdx.x % 32;
  for (int64_t pair = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32; pair < pairs; pair += warps) {
    const int64_t point = index[pair];
    float sum = 0.0f;
    if (point >= 0 && point < points) {
      const Scalar* row = gradient + pair / neighbours * channels;
      for (int64_t c = lane; c < channels; c += 32) {
        sum = fmaf(static_cast<float>(feats[point * channels + c]), static_cast<float>(row[c]), sum);
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
    if (lane == 0) result[pair] = static_cast<Scalar>(sum);
  }
}

Tensor weight_gradient(const Tensor& feats, const Tensor& gradient, const Tensor& index) {
  const torch::stable::accelerator::DeviceGuard guard(feats.get_device_index());
  const Tensor rows = torch::stable::contiguous(feats), places = torch::stable::contiguous(index);
  const Tensor gradients = torch::stable::contiguous(gradient);
  Tensor result = torch::stable::new_empty(feats, {index.size(0), index.size(1)});
  if (result.numel() == 0) return result;
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    dot<Scalar><<<geo3d::blocks_for(32 * result.numel(), kThreads), kThreads, 0, geo3d::current_stream(feats)>>>(
        geo3d::data<Scalar>(rows), rows.size(0), geo3d::data<Scalar>(gradients), geo3d::data<int64_t>(places),
        result.numel(), index.size(1), feats.size(1), geo3d::mutable_data<Scalar>(result));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("interpolate", TORCH_BOX(&interpolate));
  m.impl("interpolate_feats_gradient", TORCH_BOX(&feats_gradient));
  m.impl("interpolate_weight_gradient", TORCH_BOX(&weight_gradient));
}
