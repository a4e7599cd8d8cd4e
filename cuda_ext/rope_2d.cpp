// CPU kernel of geo3d::rope_2d. geo3d/ops/rope_2d.py tells what it computes and has checked the arguments.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChannelsPerTask = 16384;
constexpr int64_t kAnglesPerTask = 512;

// Cosines and sines of the angles of all positions, each computed once and shared by all heads.
// Positions in a narrow range, as on an image grid, get a row of the table for each value of the range,
// others a row for each coordinate of each token.
class RotationTable {
 public:
  RotationTable(const Tensor& positions, int64_t quarter, double base, bool inverse) : quarter_(quarter) {
    const std::vector<int64_t> coordinates = gather(positions);
    const int64_t count = static_cast<int64_t>(coordinates.size());
    const auto [low, high] = std::minmax_element(coordinates.begin(), coordinates.end());
    const uint64_t width = static_cast<uint64_t>(*high) - static_cast<uint64_t>(*low);  // unsigned: cannot overflow
    row_of_.resize(count);
    if (width < static_cast<uint64_t>(count)) {
      std::vector<int64_t> values(width + 1);
      for (size_t row = 0; row < values.size(); ++row) values[row] = *low + static_cast<int64_t>(row);
      for (int64_t i = 0; i < count; ++i) row_of_[i] = coordinates[i] - *low;
      fill(values, base, inverse);
    } else {
      for (int64_t i = 0; i < count; ++i) row_of_[i] = i;
      fill(coordinates, base, inverse);
    }
  }

  // Q cosines followed by Q sines, of the row (axis 0) or column (axis 1) of a token counted through the batch.
  const float* row(int64_t token, int64_t axis) const {
    return table_.data() + row_of_[2 * token + axis] * 2 * quarter_;
  }

 private:
  static std::vector<int64_t> gather(const Tensor& positions) {
    const int64_t* data = static_cast<const int64_t*>(positions.const_data_ptr());
    std::vector<int64_t> coordinates;
    coordinates.reserve(positions.numel());
    for (int64_t batch = 0; batch < positions.size(0); ++batch) {
      for (int64_t token = 0; token < positions.size(1); ++token) {
        const int64_t* yx = data + batch * positions.stride(0) + token * positions.stride(1);
        coordinates.push_back(yx[0]);
        coordinates.push_back(yx[positions.stride(2)]);
      }
    }
    return coordinates;
  }

  void fill(const std::vector<int64_t>& positions, double base, bool inverse) {
    std::vector<double> frequencies(quarter_);
    for (int64_t t = 0; t < quarter_; ++t) {
      frequencies[t] = (inverse ? -1 : 1) * std::pow(base, -static_cast<double>(t) / quarter_);
    }
    table_.resize(positions.size() * 2 * quarter_);
    const int64_t grain = std::max<int64_t>(1, kAnglesPerTask / quarter_);
    torch::stable::parallel_for(0, positions.size(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* cosines = table_.data() + row * 2 * quarter_;
        for (int64_t t = 0; t < quarter_; ++t) {
          const double angle = static_cast<double>(positions[row]) * frequencies[t];
          cosines[t] = static_cast<float>(std::cos(angle));
          cosines[quarter_ + t] = static_cast<float>(std::sin(angle));
        }
      }
    });
  }

  int64_t quarter_;
  std::vector<int64_t> row_of_;
  std::vector<float> table_;
};

// Half a token of one head: Q planes (u, v) turned by Q angles.
template <typename Scalar>
inline void rotate(const Scalar* __restrict in, int64_t in_stride, Scalar* __restrict out, int64_t out_stride,
                   const float* __restrict cosines, int64_t quarter) {
  const float* __restrict sines = cosines + quarter;
  for (int64_t t = 0; t < quarter; ++t) {
    const float u = static_cast<float>(in[t * in_stride]);
    const float v = static_cast<float>(in[(quarter + t) * in_stride]);
    out[t * out_stride] = static_cast<Scalar>(u * cosines[t] - v * sines[t]);
    out[(quarter + t) * out_stride] = static_cast<Scalar>(v * cosines[t] + u * sines[t]);
  }
}

template <typename Scalar>
void rotate_all(const Tensor& tokens, const RotationTable& table, Tensor& result) {
  const Scalar* in = static_cast<const Scalar*>(tokens.const_data_ptr());
  Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
  const int64_t heads = tokens.size(1), length = tokens.size(2), quarter = tokens.size(3) / 4;
  const auto in_strides = tokens.strides(), out_strides = result.strides();
  const bool contiguous_channels = in_strides[3] == 1 && out_strides[3] == 1;
  const int64_t half_in = 2 * quarter * in_strides[3], half_out = 2 * quarter * out_strides[3];
  // Rows follow each other as in memory: heads inside tokens where a projection was only viewed, else tokens inside heads.
  const bool heads_inside = out_strides[1] < out_strides[2];
  const int64_t inner = heads_inside ? heads : length;
  const int64_t rows = tokens.size(0) * heads * length;
  const int64_t grain = std::max<int64_t>(1, kChannelsPerTask / (4 * quarter));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    int64_t batch = begin / (heads * length), outer_index = begin / inner % (heads * length / inner), inner_index = begin % inner;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t head = heads_inside ? inner_index : outer_index;
      const int64_t token = heads_inside ? outer_index : inner_index;
      const Scalar* from = in + batch * in_strides[0] + head * in_strides[1] + token * in_strides[2];
      Scalar* to = out + batch * out_strides[0] + head * out_strides[1] + token * out_strides[2];
      const float* by_y = table.row(batch * length + token, 0);
      const float* by_x = table.row(batch * length + token, 1);
      if (contiguous_channels) {  // constant strides let the compiler vectorise
        rotate(from, 1, to, 1, by_y, quarter);
        rotate(from + half_in, 1, to + half_out, 1, by_x, quarter);
      } else {
        rotate(from, in_strides[3], to, out_strides[3], by_y, quarter);
        rotate(from + half_in, in_strides[3], to + half_out, out_strides[3], by_x, quarter);
      }
      if (++inner_index == inner) {
        inner_index = 0;
        if (++outer_index == heads * length / inner) {
          outer_index = 0;
          ++batch;
        }
      }
    }
  });
}

Tensor rope_2d(const Tensor& tokens, const Tensor& positions, double base, bool inverse) {
  Tensor result = torch::stable::empty_like(tokens);
  if (tokens.numel() == 0) {
    return result;
  }
  const RotationTable table(positions, tokens.size(3) / 4, base, inverse);
  switch (tokens.scalar_type()) {
    case ScalarType::Float:
      rotate_all<float>(tokens, table, result);
      break;
    case ScalarType::BFloat16:
      rotate_all<BFloat16>(tokens, table, result);
      break;
    case ScalarType::Half:
      rotate_all<Half>(tokens, table, result);
      break;
    default:
      STD_TORCH_CHECK(false, "rope_2d: no CPU kernel for this dtype");
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("rope_2d", TORCH_BOX(&rope_2d));
}
