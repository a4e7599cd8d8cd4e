// CPU kernels of geo3d::interpolate and its gradients. geo3d/ops/interpolate.py tells what they compute and has checked
// the arguments.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 16384;

int64_t rows_per_task(int64_t elements_of_row) { return std::max<int64_t>(1, kElementsPerTask / (elements_of_row + 1)); }

template <typename Scalar>
const Scalar* data(const Tensor& tensor) {
  return static_cast<const Scalar*>(tensor.const_data_ptr());
}

template <typename Scalar>
inline void add_row(float factor, const Scalar* __restrict row, float* __restrict sums, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) sums[c] += factor * static_cast<float>(row[c]);
}

Tensor interpolate(const Tensor& feats, const Tensor& index, const Tensor& weight) {
  const Tensor rows = torch::stable::contiguous(feats), places = torch::stable::contiguous(index);
  const Tensor factors = geo3d::float_rows(weight);
  const int64_t queries = index.size(0), neighbours = index.size(1), channels = feats.size(1);
  Tensor result = torch::stable::new_empty(feats, {queries, channels});
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, queries, rows_per_task(neighbours * channels), [&](int64_t begin, int64_t end) {
      std::vector<float> sums(channels);
      for (int64_t q = begin; q < end; ++q) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t pair = q * neighbours; pair < (q + 1) * neighbours; ++pair) {
          const int64_t point = data<int64_t>(places)[pair];
          if (point >= 0) {
            add_row(data<float>(factors)[pair], data<Scalar>(rows) + point * channels, sums.data(), channels);
          }
        }
        geo3d::round_row(sums.data(), out + q * channels, channels);
      }
    });
  });
  return result;
}

// For each point, the places in `index` that name it, in their order.
class PairsByPoint {
 public:
  PairsByPoint(const int64_t* index, int64_t pairs, int64_t points) : first_(points + 1), pair_(pairs) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (index[pair] >= 0) ++first_[index[pair] + 1];
    }
    for (int64_t point = 0; point < points; ++point) first_[point + 1] += first_[point];
    std::vector<int64_t> next(first_.begin(), first_.end() - 1);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (index[pair] >= 0) pair_[next[index[pair]]++] = pair;
    }
  }

  const int64_t* begin(int64_t point) const { return pair_.data() + first_[point]; }
  const int64_t* end(int64_t point) const { return pair_.data() + first_[point + 1]; }

 private:
  std::vector<int64_t> first_, pair_;
};

Tensor feats_gradient(const Tensor& gradient, const Tensor& index, const Tensor& weight, int64_t count) {
  const Tensor rows = torch::stable::contiguous(gradient), places = torch::stable::contiguous(index);
  const Tensor factors = geo3d::float_rows(weight);
  const int64_t pairs = index.numel(), neighbours = index.size(1), channels = gradient.size(1);
  Tensor result = torch::stable::new_empty(gradient, {count, channels});
  const PairsByPoint by_point(data<int64_t>(places), pairs, count);
  const int64_t pairs_of_point = pairs / std::max<int64_t>(1, count) + 1;
  geo3d::for_dtype(gradient.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, count, rows_per_task(pairs_of_point * channels), [&](int64_t begin, int64_t end) {
      std::vector<float> sums(channels);
      for (int64_t point = begin; point < end; ++point) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (const int64_t* pair = by_point.begin(point); pair != by_point.end(point); ++pair) {
          const Scalar* row = data<Scalar>(rows) + *pair / neighbours * channels;
          add_row(data<float>(factors)[*pair], row, sums.data(), channels);
        }
        geo3d::round_row(sums.data(), out + point * channels, channels);
      }
    });
  });
  return result;
}

// Sums of every eighth product, so that several are on their way at a time; then the sum of those.
template <typename Scalar>
inline float dot(const Scalar* __restrict a, const Scalar* __restrict b, int64_t channels) {
  constexpr int kSums = 8;
  float sums[kSums] = {};
  int64_t c = 0;
  for (; c + kSums <= channels; c += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += static_cast<float>(a[c + i]) * static_cast<float>(b[c + i]);
  }
  for (; c < channels; ++c) sums[0] += static_cast<float>(a[c]) * static_cast<float>(b[c]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

Tensor weight_gradient(const Tensor& feats, const Tensor& gradient, const Tensor& index) {
  const Tensor rows = torch::stable::contiguous(feats), places = torch::stable::contiguous(index);
  const Tensor gradients = torch::stable::contiguous(gradient);
  const int64_t queries = index.size(0), neighbours = index.size(1), channels = feats.size(1);
  Tensor result = torch::stable::new_empty(feats, {queries, neighbours});
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, queries, rows_per_task(neighbours * channels), [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin * neighbours; pair < end * neighbours; ++pair) {
        const int64_t point = data<int64_t>(places)[pair];
        const Scalar* row = data<Scalar>(gradients) + pair / neighbours * channels;
        const float product = point < 0 ? 0.0f : dot(data<Scalar>(rows) + point * channels, row, channels);
        out[pair] = static_cast<Scalar>(product);
      }
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("interpolate", TORCH_BOX(&interpolate));
  m.impl("interpolate_feats_gradient", TORCH_BOX(&feats_gradient));
  m.impl("interpolate_weight_gradient", TORCH_BOX(&weight_gradient));
}
