// CUDA kernel of geo3d::rope_2d. geo3d/ops/rope_2d.py tells what it computes and has checked the arguments.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kMaxQuarter = 128;  // head dimension 512; geo3d/ops/rope_2d.py sends larger heads to the reference
constexpr double kTurn = 6.283185307179586;
constexpr double kFar = 1e8;  // where the error of kTurn in double begins to show in float32

// Angle per unit of position of each plane; computed once on the host and small enough to be a kernel argument.
struct Frequencies {
  double of_plane[kMaxQuarter];
};

struct Strides {
  int64_t batch, head, token, channel;
};

// Sine and cosine to the last bits of float32, with few of the operations in double that most devices are slow at.
__device__ void sine_cosine(double angle, float* sine, float* cosine) {
  if (fabs(angle) < kFar) {
    const double turns = rint(angle * (1 / kTurn));
    sincosf(static_cast<float>(fma(-kTurn, turns, angle)), sine, cosine);
  } else {
    double exact_sine, exact_cosine;
    sincos(angle, &exact_sine, &exact_cosine);
    *sine = static_cast<float>(exact_sine);
    *cosine = static_cast<float>(exact_cosine);
  }
}

// One block turns one token of all heads, so its D / 2 sines and cosines are computed once.
template <typename Scalar>
__global__ void rotate_token(const Scalar* __restrict__ tokens, Strides in, const int64_t* __restrict__ positions,
                             int64_t position_batch, int64_t position_token, int64_t position_axis,
                             Scalar* __restrict__ result, Strides out, int64_t length, int heads, int quarter,
                             Frequencies frequencies) {
  __shared__ float cosines[2 * kMaxQuarter], sines[2 * kMaxQuarter];
  const int64_t batch = blockIdx.x / length, token = blockIdx.x % length;
  const int64_t* yx = positions + batch * position_batch + token * position_token;
  const int planes = 2 * quarter;  // of a head: Q turned by y, then Q turned by x
  for (int plane = threadIdx.x; plane < planes; plane += blockDim.x) {
    const int axis = plane / quarter;
    const double angle = static_cast<double>(yx[axis * position_axis]) * frequencies.of_plane[plane - axis * quarter];
    sine_cosine(angle, &sines[plane], &cosines[plane]);
  }
  __syncthreads();

  const Scalar* from = tokens + batch * in.batch + token * in.token;
  Scalar* to = result + batch * out.batch + token * out.token;
  for (int index = threadIdx.x; index < heads * planes; index += blockDim.x) {
    const int head = index / planes, plane = index - head * planes;
    const int channel_u = plane < quarter ? plane : plane + quarter, channel_v = channel_u + quarter;
    const float u = static_cast<float>(from[head * in.head + channel_u * in.channel]);
    const float v = static_cast<float>(from[head * in.head + channel_v * in.channel]);
    const float cosine = cosines[plane], sine = sines[plane];
    to[head * out.head + channel_u * out.channel] = static_cast<Scalar>(u * cosine - v * sine);
    to[head * out.head + channel_v * out.channel] = static_cast<Scalar>(v * cosine + u * sine);
  }
}

Strides strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

template <typename Scalar>
void launch(const Tensor& tokens, const Tensor& positions, const Frequencies& frequencies, Tensor& result) {
  const int64_t blocks = tokens.size(0) * tokens.size(2);
  STD_TORCH_CHECK(blocks <= INT32_MAX, "rope_2d: at most 2^31 - 1 tokens in a batch, got ", blocks);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tokens.get_device_index(), &stream));
  rotate_token<Scalar><<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const Scalar*>(tokens.const_data_ptr()), strides_of(tokens),
      static_cast<const int64_t*>(positions.const_data_ptr()), positions.stride(0), positions.stride(1),
      positions.stride(2), static_cast<Scalar*>(result.mutable_data_ptr()), strides_of(result), tokens.size(2),
      static_cast<int>(tokens.size(1)), static_cast<int>(tokens.size(3) / 4), frequencies);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor rope_2d(const Tensor& tokens, const Tensor& positions, double base, bool inverse) {
  const torch::stable::accelerator::DeviceGuard guard(tokens.get_device_index());
  Tensor result = torch::stable::empty_like(tokens);
  if (tokens.numel() == 0) {
    return result;
  }
  const int64_t quarter = tokens.size(3) / 4;
  STD_TORCH_CHECK(quarter <= kMaxQuarter, "rope_2d: the CUDA kernel takes heads of at most ", 4 * kMaxQuarter);
  Frequencies frequencies;
  for (int64_t t = 0; t < quarter; ++t) {
    frequencies.of_plane[t] = (inverse ? -1 : 1) * std::pow(base, -static_cast<double>(t) / quarter);
  }
  switch (tokens.scalar_type()) {
    case ScalarType::Float:
      launch<float>(tokens, positions, frequencies, result);
      break;
    case ScalarType::BFloat16:
      launch<BFloat16>(tokens, positions, frequencies, result);
      break;
    case ScalarType::Half:
      launch<Half>(tokens, positions, frequencies, result);
      break;
    default:
      STD_TORCH_CHECK(false, "rope_2d: no CUDA kernel for this dtype");
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("rope_2d", TORCH_BOX(&rope_2d));
}
