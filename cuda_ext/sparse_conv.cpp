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
#include <memory>
#include <type_traits>
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
constexpr int64_t kFewTasks = 16;  // where there are fewer, columns are shared out as well
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

// Padded columns in strips of at most kMaxVectors vectors, as even as can be, and these in parts for several tasks.
struct Strips {
  int64_t vectors, strips, parts;

  // As many parts as `tasks` tasks lack to be kFewTasks.
  Strips(int64_t columns, int64_t tasks)
      : vectors(columns / kLanes),
        strips((vectors + kMaxVectors - 1) / kMaxVectors),
        parts(std::clamp<int64_t>(kFewTasks / std::max<int64_t>(1, tasks), 1, std::max<int64_t>(1, strips))) {}

  // First column of a strip, and of a part.
  int64_t first(int64_t strip) const { return strips == 0 ? 0 : vectors * strip / strips * kLanes; }
  int64_t first_of_part(int64_t part) const { return first(strips * part / parts); }

  // Calls body(column, std::integral_constant<int, n>) for the strips of a part, of n vectors from this column on.
  template <typename Body>
  void visit(int64_t part, const Body& body) const {
    for (int64_t strip = strips * part / parts; strip < strips * (part + 1) / parts; ++strip) {
      switch ((first(strip + 1) - first(strip)) / kLanes) {
        case 1:
          body(first(strip), std::integral_constant<int, 1>{});
          break;
        case 2:
          body(first(strip), std::integral_constant<int, 2>{});
          break;
        case 3:
          body(first(strip), std::integral_constant<int, kMaxVectors < 3 ? 1 : 3>{});
          break;
        default:
          body(first(strip), std::integral_constant<int, kMaxVectors < 4 ? 1 : 4>{});
      }
    }
  }
};

// A tensor's rows as float32, padded to whole vectors; copied only where they are not so already.
struct PaddedRows {
  explicit PaddedRows(const Tensor& tensor) : values(geo3d::float_rows(tensor)) {
    data = static_cast<const float*>(values.const_data_ptr());
    const int64_t columns = values.size(-1), stride = padded(columns);
    if (columns == stride) return;
    const int64_t rows = columns == 0 ? 0 : values.numel() / columns;
    copy.resize(rows * stride);
    for (int64_t row = 0; row < rows; ++row) std::copy_n(data + row * columns, columns, copy.data() + row * stride);
    data = copy.data();
  }

  Tensor values;
  std::vector<float> copy;
  const float* data;
};

template <typename Scalar>
void convolve(const Tensor& feats, const Tensor& weight, const Tensor& neighbours, Tensor& result) {
  const Tensor values = geo3d::float_rows(feats), map = torch::stable::contiguous(neighbours);
  const float* inputs = static_cast<const float*>(values.const_data_ptr());
  const int32_t* rows = static_cast<const int32_t*>(map.const_data_ptr());
  Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
  const int64_t offsets = map.size(0), count = map.size(1), depth = values.size(1), columns = weight.size(2);
  const int64_t stride = padded(columns);
  const PaddedRows weights(weight);
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const Strips strips(stride, blocks);
  torch::stable::parallel_for(0, blocks * strips.parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(std::min(kBlock, count) * stride);
    Pairs pairs(kBlock);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / strips.parts * kBlock, size = std::min(kBlock, count - first);
      const int64_t part = task % strips.parts, left = strips.first_of_part(part);
      const int64_t right = strips.first_of_part(part + 1), filled = std::min(right, columns) - left;
      for (int64_t m = 0; m < size; ++m) std::fill(sums.data() + m * stride + left, sums.data() + m * stride + right, 0.0f);
      for (int64_t k = 0; k < offsets; ++k) {
        pairs.collect(rows + k * count + first, size, 0);
        strips.visit(part, [&](int64_t column, auto vectors) {
          multiply_pairs<vectors()>(pairs, inputs, depth, weights.data + k * depth * stride + column, stride,
                                    sums.data() + column, stride);
        });
      }
      for (int64_t m = 0; m < size; ++m) {
        geo3d::round_row(sums.data() + m * stride + left, out + (first + m) * columns + left, filled);
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
  const PaddedRows gradients(gradient);
  // Groups depend on the sizes alone, and are added in their order: so are the bits, whatever the threads. Where there
  // are few, tasks have a part of the offsets each, and of the columns.
  const int64_t most = std::min(kGradientTasks, kMaxPartialSums / std::max<int64_t>(1, size));
  const int64_t groups = std::max<int64_t>(1, std::min(most, count / kGradientGroup));
  const int64_t parts = std::max<int64_t>(1, std::min(offsets, kGradientTasks / groups));
  const Strips strips(stride, groups * parts);
  Scalar* out = static_cast<Scalar*>(result.mutable_data_ptr());
  // A single sum of the result's own type and layout is made in its place.
  constexpr bool kFloat = std::is_same_v<Scalar, float>;
  const bool in_place = kFloat && groups == 1 && stride == columns;
  std::unique_ptr<float[]> memory(in_place ? nullptr : new float[groups * size]);
  float* const partial = in_place ? reinterpret_cast<float*>(out) : memory.get();
  torch::stable::parallel_for(0, groups * parts * strips.parts, 1, [&](int64_t begin, int64_t end) {
    Pairs pairs(kBlock);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t share = task / strips.parts, group = share / parts, part = share % parts;
      const int64_t last = count * (group + 1) / groups;
      const int64_t left = strips.first_of_part(task % strips.parts);
      const int64_t right = strips.first_of_part(task % strips.parts + 1);
      for (int64_t row = offsets * part / parts * depth; row < offsets * (part + 1) / parts * depth; ++row) {
        float* sums = partial + group * size + row * stride;
        std::fill(sums + left, sums + right, 0.0f);
      }
      for (int64_t first = count * group / groups; first < last; first += kBlock) {
        for (int64_t k = offsets * part / parts; k < offsets * (part + 1) / parts; ++k) {
          pairs.collect(rows + k * count + first, std::min(kBlock, last - first), static_cast<int32_t>(first));
          float* sums = partial + group * size + k * depth * stride;
          strips.visit(task % strips.parts, [&](int64_t column, auto vectors) {
            add_outer_products<vectors()>(pairs, inputs, depth, gradients.data + column, stride, sums + column);
          });
        }
      }
    }
  });
  if (in_place) return;
  torch::stable::parallel_for(0, offsets * depth, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* sums = partial + row * stride;
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
