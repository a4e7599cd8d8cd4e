// CPU kernels of geo3d::sparse_conv and its weight's gradient. geo3d/ops/sparse_conv.py tells what they compute and has
// checked the arguments.
//
// Neither gathers rows nor adds atomically. Outputs are taken in blocks; for each offset of the kernel, the pairs of
// input and output rows in a block are multiplied where they lie, several rows at a time, so that sums stay in
// registers, weights in the first level of cache and the block's rows in the second.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

using geo3d::FloatVector;
using geo3d::kLanes;
using geo3d::kManyRegisters;
using geo3d::padded;
using torch::stable::Tensor;

constexpr int64_t kBlock = 512;            // outputs that are summed together
constexpr int64_t kGradientGroup = 4096;   // outputs whose contributions to the weight's gradient make one partial sum
constexpr int64_t kMaxPartialSums = 1 << 24;  // floats of all partial sums, unless one alone has more
constexpr int64_t kGradientTasks = 64;
constexpr int kMaxVectors = kManyRegisters ? 4 : 2;  // columns of a tile of sums, in vectors
// Rows of a tile: as many as leave registers for one row of weights and one factor.
constexpr int rows_of_tile(int vectors) { return kManyRegisters ? (vectors == 4 ? 6 : 8) : 6; }
constexpr int kMaxRows = 8;

// Rows of inputs and outputs that an offset joins within a block.
struct Pairs {
  std::vector<int32_t> inputs, outputs;
  int64_t count = 0;

  explicit Pairs(int64_t capacity) : inputs(capacity + kMaxRows), outputs(capacity + kMaxRows) {}

  // `rows` are inputs of `size` outputs, of which the first is called `first`.
  void collect(const int32_t* rows, int64_t size, int32_t first) {
    count = 0;
    for (int64_t m = 0; m < size; ++m) {
      inputs[count] = rows[m];
      outputs[count] = first + static_cast<int32_t>(m);
      count += rows[m] >= 0;
    }
  }
};

// Sums of kRows outputs, kVectors of columns each, plus their inputs times the weights below each other at `weight`.
template <int kRows, int kVectors>
inline __attribute__((always_inline)) void add_products(const float* const* inputs, const float* weight, int64_t depth,
                                                        int64_t weight_stride, float* const* outputs) {
  FloatVector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = geo3d::load(outputs[r] + v * kLanes);
  }
  for (int64_t c = 0; c < depth; ++c, weight += weight_stride) {
    FloatVector row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = geo3d::load(weight + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const float factor = inputs[r][c];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * row[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) geo3d::store(outputs[r] + v * kLanes, sums[r][v]);
  }
}

// All pairs of an offset within a block, for kVectors of columns.
template <int kVectors>
void multiply_pairs(const Pairs& pairs, const float* feats, int64_t depth, const float* weight, int64_t weight_stride,
                    float* sums, int64_t sums_stride) {
  constexpr int kRows = rows_of_tile(kVectors);
  const float* inputs[kRows];
  float* outputs[kRows];
  const auto point = [&](int64_t pair, int rows) {
    for (int r = 0; r < rows; ++r) {
      inputs[r] = feats + pairs.inputs[pair + r] * depth;
      outputs[r] = sums + pairs.outputs[pair + r] * sums_stride;
    }
  };
  int64_t done = 0;
  for (; done + kRows <= pairs.count; done += kRows) {
    point(done, kRows);
    add_products<kRows, kVectors>(inputs, weight, depth, weight_stride, outputs);
  }
  for (; done + 2 <= pairs.count; done += 2) {
    point(done, 2);
    add_products<2, kVectors>(inputs, weight, depth, weight_stride, outputs);
  }
  if (done < pairs.count) {
    point(done, 1);
    add_products<1, kVectors>(inputs, weight, depth, weight_stride, outputs);
  }
}

// Calls body(first, std::integral_constant<int, n>) for strips of n <= kMaxVectors vectors that cover `columns`, evenly.
template <typename Body>
void for_strips(int64_t columns, const Body& body) {
  const int64_t vectors = columns / kLanes, strips = (vectors + kMaxVectors - 1) / kMaxVectors;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = vectors * strip / strips, width = vectors * (strip + 1) / strips - first;
    switch (width) {
      case 1:
        body(first * kLanes, std::integral_constant<int, 1>{});
        break;
      case 2:
        body(first * kLanes, std::integral_constant<int, 2>{});
        break;
      case 3:
        body(first * kLanes, std::integral_constant<int, kMaxVectors < 3 ? 1 : 3>{});
        break;
      default:
        body(first * kLanes, std::integral_constant<int, kMaxVectors < 4 ? 1 : 4>{});
    }
  }
}

// Weights with rows that are padded to whole vectors.
std::vector<float> padded_rows(const Tensor& tensor) {
  const Tensor values = geo3d::float_rows(tensor);
  const float* from = static_cast<const float*>(values.const_data_ptr());
  const int64_t columns = values.size(-1), stride = padded(columns);
  const int64_t rows = columns == 0 ? 0 : values.numel() / columns;
  std::vector<float> result(rows * stride);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(from + row * columns, columns, result.data() + row * stride);
  return result;
}

template <typename Scalar>
void convolve(const Tensor& feats, const Tensor& weight, const Tensor& neighbours, Tensor& result) {
  const Tensor values = geo3d::float_rows(feats), map = torch::stable::contiguous(neighbours);
  const float* inputs = static_cast<const float*>(values.const_data_ptr());
  const int32_t* rows = static_cast<const int32_t*>(map.const_data_ptr());
  Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
  const int64_t offsets = map.size(0), count = map.size(1), depth = values.size(1), columns = weight.size(2);
  const int64_t stride = padded(columns);
  const std::vector<float> weights = padded_rows(weight);
  torch::stable::parallel_for(0, (count + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(kBlock * stride);
    Pairs pairs(kBlock);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, size = std::min(kBlock, count - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t k = 0; k < offsets; ++k) {
        pairs.collect(rows + k * count + first, size, 0);
        for_strips(stride, [&](int64_t column, auto vectors) {
          multiply_pairs<vectors()>(pairs, inputs, depth, weights.data() + k * depth * stride + column, stride,
                                    sums.data() + column, stride);
        });
      }
      for (int64_t m = 0; m < size; ++m) {
        geo3d::round_row(sums.data() + m * stride, out + (first + m) * columns, columns);
      }
    }
  });
}

// A tile of the weight's gradient: kRows channels of inputs by kVectors of columns of the output's gradient, summed over
// the pairs.
template <int kRows, int kVectors>
inline __attribute__((always_inline)) void add_outer_products(const Pairs& pairs, const float* inputs,
                                                              int64_t input_stride, const float* gradient,
                                                              int64_t gradient_stride, float* tile,
                                                              int64_t tile_stride) {
  FloatVector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = geo3d::load(tile + r * tile_stride + v * kLanes);
  }
  for (int64_t pair = 0; pair < pairs.count; ++pair) {
    const float* input = inputs + pairs.inputs[pair] * input_stride;
    const float* row_of_gradient = gradient + pairs.outputs[pair] * gradient_stride;
    FloatVector row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = geo3d::load(row_of_gradient + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] += input[r] * row[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) geo3d::store(tile + r * tile_stride + v * kLanes, sums[r][v]);
  }
}

// All channels of inputs by kVectors of columns.
template <int kVectors>
void add_outer_products(const Pairs& pairs, const float* inputs, int64_t depth, const float* gradient, int64_t stride,
                        float* sums) {
  constexpr int kRows = rows_of_tile(kVectors);
  int64_t channel = 0;
  for (; channel + kRows <= depth; channel += kRows) {
    add_outer_products<kRows, kVectors>(pairs, inputs + channel, depth, gradient, stride, sums + channel * stride, stride);
  }
  for (; channel + 2 <= depth; channel += 2) {
    add_outer_products<2, kVectors>(pairs, inputs + channel, depth, gradient, stride, sums + channel * stride, stride);
  }
  if (channel < depth) {
    add_outer_products<1, kVectors>(pairs, inputs + channel, depth, gradient, stride, sums + channel * stride, stride);
  }
}

template <typename Scalar>
void weight_gradient(const Tensor& feats, const Tensor& gradient, const Tensor& neighbours, Tensor& result) {
  const Tensor values = geo3d::float_rows(feats), map = torch::stable::contiguous(neighbours);
  const float* inputs = static_cast<const float*>(values.const_data_ptr());
  const int32_t* rows = static_cast<const int32_t*>(map.const_data_ptr());
  const int64_t offsets = map.size(0), count = map.size(1), depth = values.size(1), columns = gradient.size(1);
  const int64_t stride = padded(columns), size = offsets * depth * stride;
  const std::vector<float> gradients = padded_rows(gradient);
  // Groups depend on the sizes alone, and are added in their order: so are the bits, whatever the threads. Where there
  // are few, tasks have a part of the offsets each.
  const int64_t most = std::min(kGradientTasks, kMaxPartialSums / std::max<int64_t>(1, size));
  const int64_t groups = std::max<int64_t>(1, std::min(most, count / kGradientGroup));
  const int64_t parts = std::max<int64_t>(1, std::min(offsets, kGradientTasks / groups));
  std::vector<float> partial(groups * size);
  torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
    Pairs pairs(kBlock);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / parts, part = task % parts, last = count * (group + 1) / groups;
      for (int64_t first = count * group / groups; first < last; first += kBlock) {
        for (int64_t k = offsets * part / parts; k < offsets * (part + 1) / parts; ++k) {
          pairs.collect(rows + k * count + first, std::min(kBlock, last - first), static_cast<int32_t>(first));
          float* sums = partial.data() + group * size + k * depth * stride;
          for_strips(stride, [&](int64_t column, auto vectors) {
            add_outer_products<vectors()>(pairs, inputs, depth, gradients.data() + column, stride, sums + column);
          });
        }
      }
    }
  });
  Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, offsets * depth, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* sums = partial.data() + row * stride;
      for (int64_t group = 1; group < groups; ++group) {
        for (int64_t column = 0; column < stride; ++column) sums[column] += sums[group * size + column];
      }
      geo3d::round_row(sums, out + row * columns, columns);
    }
  });
}

Tensor sparse_conv(const Tensor& feats, const Tensor& weight, const Tensor& neighbours,
                   const std::optional<Tensor>& /*transposed*/) {
  Tensor result = torch::stable::new_empty(feats, {neighbours.size(1), weight.size(2)});
  geo3d::for_dtype(feats.scalar_type(), [&](auto scalar) { convolve<decltype(scalar)>(feats, weight, neighbours, result); });
  return result;
}

Tensor sparse_conv_weight_gradient(const Tensor& feats, const Tensor& gradient, const Tensor& neighbours,
                                   const std::optional<Tensor>& /*transposed*/) {
  Tensor result = torch::stable::new_empty(feats, {neighbours.size(0), feats.size(1), gradient.size(1)});
  geo3d::for_dtype(feats.scalar_type(),
                   [&](auto scalar) { weight_gradient<decltype(scalar)>(feats, gradient, neighbours, result); });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("sparse_conv_weight_gradient", TORCH_BOX(&sparse_conv_weight_gradient));
}
