// CPU kernel of geo3d::radiance_step. geo3d/ops/radiance_step.py tells what it computes and has checked the arguments.
//
// One pass over memory. With a total variation the values before the step are needed after it: of the plane before and
// the row before they are kept, and chunks of planes, in each of which one thread goes forward, keep their neighbours'.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "vectors.h"

namespace geo3d {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChannels = 4;
constexpr int64_t kSegment = 8;  // SEGMENT of radiance_step.py, nodes
constexpr int64_t kFloats = kSegment * kChannels;
constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kPlanesPerChunk = 16;
// Below these the moments of nodes that no ray meets any more become zero: numbers that are not normal are slow.
constexpr float kLeastMean = 1e-30f, kLeastSquare = 1e-36f;

struct Rates {
  float rate[kChannels], smoothness[kChannels];
  float mean_decay, square_decay, correction, epsilon;  // correction: 1 / (1 - square_decay^number)
};

// Rows along z of a tensor (X, Y, Z, 4).
struct Rows {
  float* data;
  int64_t along_x, along_y;

  Rows(Tensor& tensor, int64_t first)
      : data(static_cast<float*>(tensor.mutable_data_ptr())), along_x(tensor.stride(first)),
        along_y(tensor.stride(first + 1)) {}

  float* row(int64_t x, int64_t y) const { return data + x * along_x + y * along_y; }
};

// The values around a row before the step; null: no total variation.
struct Around {
  const float* here = nullptr;  // the row itself, with its first and last nodes repeated outside it
  const float* sides[4] = {};   // the rows before and behind along x and y; `here` at the grid's faces
};

// A number for each channel, over and over.
struct Pattern {
  FloatVector lanes;

  explicit Pattern(const float* channels) {
    for (int i = 0; i < kLanes; ++i) lanes[i] = channels[i % kChannels];
  }
};

// Square roots of a segment's numbers; a loop that the compiler takes in vectors.
inline void take_roots(float* __restrict values) {
  for (int64_t i = 0; i < kFloats; ++i) values[i] = std::sqrt(values[i]);
}

inline FloatVector all(float value) { return FloatVector{} + value; }

// Adam on the 8 nodes of a segment.
inline void move(float* value, float* mean, float* square, const float* total, const Rates& rates,
                 const Pattern& rate) {
  alignas(64) float seconds[kFloats], roots[kFloats];
  for (int64_t i = 0; i < kFloats; i += kLanes) {
    const FloatVector gradient = load(total + i);
    const FloatVector second = rates.square_decay * load(square + i) + (1 - rates.square_decay) * (gradient * gradient);
    const FloatVector kept = second < kLeastSquare ? FloatVector{} : second;
    store(seconds + i, kept);
    store(roots + i, kept * rates.correction);
  }
  take_roots(roots);
  for (int64_t i = 0; i < kFloats; i += kLanes) {
    const FloatVector first = rates.mean_decay * load(mean + i) + (1 - rates.mean_decay) * load(total + i);
    const auto tiny = (first < kLeastMean) & (first > -kLeastMean);
    const FloatVector kept = tiny ? FloatVector{} : first;
    store(mean + i, kept);
    store(square + i, load(seconds + i));
    store(value + i, load(value + i) - rate.lanes * kept / (load(roots + i) + all(rates.epsilon)));
  }
}

// Nodes [begin, begin + nodes) of a row, 8 or the last few.
inline void step(float* value, float* mean, float* square, float* gradient, int64_t parts, int64_t part_stride,
                 const Around& around, const Rates& rates, const Pattern& rate, const Pattern& smoothness,
                 int64_t begin, int64_t nodes) {
  alignas(64) float total[kFloats] = {};
  const int64_t count = nodes * kChannels, at = begin * kChannels;
  const bool whole = nodes == kSegment;
  for (int64_t part = 0; part < parts; ++part) {
    float* from = gradient + part * part_stride + at;
    if (whole) {
      for (int64_t i = 0; i < kFloats; i += kLanes) {
        store(total + i, load(total + i) + load(from + i));
        store(from + i, FloatVector{});
      }
    } else {
      for (int64_t i = 0; i < count; ++i) total[i] += from[i];
      std::fill_n(from, count, 0.0f);
    }
  }
  if (around.here != nullptr) {
    const float* here = around.here + at;
    const float *a = around.sides[0] + at, *b = around.sides[1] + at, *c = around.sides[2] + at, *d = around.sides[3] + at;
    if (whole) {
      for (int64_t i = 0; i < kFloats; i += kLanes) {
        const FloatVector neighbours =
            ((load(a + i) + load(b + i)) + (load(c + i) + load(d + i))) + (load(here + i - kChannels) + load(here + i + kChannels));
        store(total + i, load(total + i) + smoothness.lanes * (6.0f * load(here + i) - neighbours));
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const float neighbours = ((a[i] + b[i]) + (c[i] + d[i])) + (here[i - kChannels] + here[i + kChannels]);
        total[i] += rates.smoothness[i % kChannels] * (6.0f * here[i] - neighbours);
      }
    }
  }
  if (whole) {
    move(value + at, mean + at, square + at, total, rates, rate);
    return;
  }
  alignas(64) float values[kFloats] = {}, means[kFloats] = {}, squares[kFloats] = {};
  std::copy_n(value + at, count, values);
  std::copy_n(mean + at, count, means);
  std::copy_n(square + at, count, squares);
  move(values, means, squares, total, rates, rate);
  std::copy_n(values, count, value + at);
  std::copy_n(means, count, mean + at);
  std::copy_n(squares, count, square + at);
}

class Stepper {
 public:
  Stepper(Tensor& grid, Tensor& gradient, Tensor& mean, Tensor& square, const std::optional<Tensor>& occupancy,
          const Rates& rates)
      : rates_(rates), rate_(rates.rate), smoothness_(rates.smoothness), grid_(grid, 0), gradient_(gradient, 1), mean_(mean, 0), square_(square, 0), x_(grid.size(0)),
        y_(grid.size(1)), z_(grid.size(2)), parts_(gradient.size(0)), part_stride_(gradient.stride(0)) {
    if (occupancy.has_value()) {
      kept_ = torch::stable::contiguous(*occupancy);
      occupancy_ = static_cast<const uint8_t*>(kept_->const_data_ptr());
    }
  }

  void run() {
    torch::stable::parallel_for(0, x_ * y_, kRowsPerTask, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> occupied(z_ / 2 + 2 + kSegment / 2);
      for (int64_t row = begin; row < end; ++row) step_row(row / y_, row % y_, Around{}, occupied);
    });
  }

  void run_smoothly() {
    const int64_t chunks = (x_ + kPlanesPerChunk - 1) / kPlanesPerChunk, row = z_ * kChannels, plane = y_ * row;
    // Of each chunk the plane before it and the plane behind it, before any is changed.
    std::vector<float> edges(2 * chunks * plane);
    torch::stable::parallel_for(0, 2 * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t edge = begin; edge < end; ++edge) {
        const int64_t x = edge / 2 * kPlanesPerChunk + (edge % 2 == 0 ? -1 : kPlanesPerChunk);
        if (x < 0 || x >= x_) continue;
        for (int64_t y = 0; y < y_; ++y) std::copy_n(grid_.row(x, y), row, edges.data() + edge * plane + y * row);
      }
    });
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> occupied(z_ / 2 + 2 + kSegment / 2);
      std::vector<float> current(row + 2 * kChannels);
      float* here = current.data() + kChannels;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        float* before = edges.data() + 2 * chunk * plane;  // rows of the plane before, then of this one
        const float* behind = before + plane;
        const int64_t first = chunk * kPlanesPerChunk, last = std::min(first + kPlanesPerChunk, x_);
        for (int64_t x = first; x < last; ++x) {
          for (int64_t y = 0; y < y_; ++y) {
            std::copy_n(grid_.row(x, y), row, here);
            std::copy_n(here, kChannels, here - kChannels);
            std::copy_n(here + row - kChannels, kChannels, here + row);
            Around around;
            around.here = here;
            around.sides[0] = x > 0 ? before + y * row : here;
            around.sides[1] = x + 1 == x_ ? here : x + 1 == last ? behind + y * row : grid_.row(x + 1, y);
            around.sides[2] = y > 0 ? before + (y - 1) * row : here;
            around.sides[3] = y + 1 == y_ ? here : grid_.row(x, y + 1);
            step_row(x, y, around, occupied);
            std::copy_n(here, row, before + y * row);
          }
        }
      }
    });
  }

 private:
  void step_row(int64_t x, int64_t y, const Around& around, std::vector<uint8_t>& occupied) const {
    if (occupancy_ != nullptr && !find_occupied(x, y, occupied)) return;
    for (int64_t begin = 0; begin < z_; begin += kSegment) {
      const int64_t end = std::min(begin + kSegment, z_);
      if (occupancy_ != nullptr) {
        uint8_t touched = 0;  // node i touches cells (i - 1) / 2 and i / 2, which `occupied` holds one further
        for (int64_t i = 0; i <= kSegment / 2; ++i) touched |= occupied[begin / 2 + i];
        if (touched == 0) continue;
      }
      step(grid_.row(x, y), mean_.row(x, y), square_.row(x, y), gradient_.row(x, y), parts_, part_stride_, around, rates_,
           rate_, smoothness_, begin, end - begin);
    }
  }

  // Which cells along z the nodes of a row touch, cell k in k + 1, and zeros around them; false: none.
  bool find_occupied(int64_t x, int64_t y, std::vector<uint8_t>& occupied) const {
    const int64_t cells[3] = {x_ / 2, y_ / 2, z_ / 2};
    std::fill(occupied.begin(), occupied.end(), uint8_t{0});
    uint8_t any = 0;
    for (int64_t i = std::max<int64_t>(0, x - 1) / 2; i <= std::min(x / 2, cells[0] - 1); ++i) {
      for (int64_t j = std::max<int64_t>(0, y - 1) / 2; j <= std::min(y / 2, cells[1] - 1); ++j) {
        const uint8_t* __restrict from = occupancy_ + (i * cells[1] + j) * cells[2];
        uint8_t* __restrict to = occupied.data() + 1;
        for (int64_t k = 0; k < cells[2]; ++k) {
          to[k] |= from[k];
          any |= from[k];
        }
      }
    }
    return any != 0;
  }

  const Rates rates_;
  const Pattern rate_, smoothness_;
  const Rows grid_, gradient_, mean_, square_;
  const int64_t x_, y_, z_, parts_, part_stride_;
  std::optional<Tensor> kept_;
  const uint8_t* occupancy_ = nullptr;
};

void radiance_step(Tensor grid, Tensor gradient, Tensor mean, Tensor square, const std::optional<Tensor>& occupancy,
                   int64_t number, double density_rate, double colour_rate, double density_smoothness,
                   double colour_smoothness, double mean_decay, double square_decay, double epsilon) {
  Rates rates;
  const double correction = 1 - std::pow(mean_decay, number);
  for (int64_t c = 0; c < kChannels; ++c) {
    rates.rate[c] = static_cast<float>((c == 0 ? density_rate : colour_rate) / correction);
    rates.smoothness[c] = static_cast<float>(c == 0 ? density_smoothness : colour_smoothness);
  }
  rates.mean_decay = static_cast<float>(mean_decay);
  rates.square_decay = static_cast<float>(square_decay);
  rates.correction = static_cast<float>(1 / (1 - std::pow(square_decay, number)));
  rates.epsilon = static_cast<float>(epsilon);
  Stepper stepper(grid, gradient, mean, square, occupancy, rates);
  if (density_smoothness > 0 || colour_smoothness > 0) {
    stepper.run_smoothly();
  } else {
    stepper.run();
  }
}

}  // namespace
}  // namespace geo3d

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("radiance_step", TORCH_BOX(&geo3d::radiance_step));
}
