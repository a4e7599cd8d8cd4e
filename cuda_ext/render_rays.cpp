// CPU kernels of geo3d::render_rays, its backward, and radiance_gradient. geo3d/ops/render_rays.py tells what they
// compute and has checked the arguments.
//
// A ray is marched 8 segments at once; samples in occupied cells are gathered in packets of 8 that keep all the backward
// needs, so that nothing is looked up twice. Time goes to waiting for memory: nodes, and their places in the gradient, are
// asked for when a sample is gathered, and looked up when the next packet is complete; the first packets of a ray are
// gathered before the ray in front of it is looked up.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "large_pages.h"

namespace geo3d {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kBlock = 8;               // BLOCK of render_rays.py
constexpr float kFar = 60.0f;           // FAR of render_rays.py
constexpr int kPacketsAhead = 1;         // that are gathered, and on their way from memory, before one is looked up
constexpr int kMaxBlocks = 1 << 15;     // more than any step that is long enough takes
constexpr int64_t kRaysPerTask = 64;
constexpr int64_t kGradientParts = 4;   // of the backward; not the number of threads, so that bits do not depend on it
constexpr int64_t kRaysPerPart = 256;

typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef float Float4 __attribute__((vector_size(16)));

inline Float8 all(float value) { return Float8{} + value; }
inline Float8 largest(Float8 a, Float8 b) { return a > b ? a : b; }
inline Float8 least(Float8 a, Float8 b) { return a < b ? a : b; }
inline Int8 least(Int8 a, Int8 b) { return a < b ? a : b; }
inline Float8 magnitude(Float8 a) {
  return reinterpret_cast<Float8>(reinterpret_cast<Int8>(a) & std::numeric_limits<int32_t>::max());
}

inline Float8 load(const float* from) {
  Float8 vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(float* to, Float8 vector) { std::memcpy(to, &vector, sizeof vector); }

inline float sum(Float8 a) { return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])); }

// Lanes moved up by kBy, or down if it is negative; zeros come in.
template <int kBy>
inline Float8 moved(Float8 a) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  constexpr auto from = [](int lane) { return lane - kBy >= 0 && lane - kBy < 8 ? lane - kBy : 8; };
  return __builtin_shufflevector(a, Float8{}, from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7));
#else
  float lanes[24] = {};
  store(lanes + 8, a);
  return load(lanes + 8 - kBy);
#endif
}

// Sums of each lane and those before it; with kBy = -1 of those behind it.
template <int kBy>
inline Float8 running_sum(Float8 a) {
  a += moved<kBy>(a);
  a += moved<2 * kBy>(a);
  return a + moved<4 * kBy>(a);
}

// e^x with a relative error of 1e-7, for x that is clamped to where the result is a normal number.
inline Float8 exponential(Float8 x) {
  x = largest(least(x, all(88.0f)), all(-87.0f));
  // Rounds to the nearest integer, which ends up in the low bits; needs the operations in this order (no -ffast-math).
  const Float8 shifted = x * 1.44269504f + 12582912.0f;
  const Float8 whole = shifted - 12582912.0f;
  const Float8 rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  Float8 power = all(1.9875691500e-4f);
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  const Int8 exponent = (reinterpret_cast<Int8>(shifted) - 0x4B400000) << 23;
  return reinterpret_cast<Float8>(reinterpret_cast<Int8>(power) + exponent);
}

inline Float8 sigmoid(Float8 x) { return 1.0f / (1.0f + exponential(-x)); }

// log(1 + e^x) and its derivative.
inline void softplus(Float8 x, Float8& value, Float8& slope) {
  const Float8 small = exponential(-magnitude(x));  // (0, 1]
  // log(1 + s) = 2 artanh(s / (2 + s)), a series in a square of at most 1 / 9.
  const Float8 ratio = small / (2.0f + small), square = ratio * ratio;
  Float8 series = all(2.0f / 13);
  series = series * square + 2.0f / 11;
  series = series * square + 2.0f / 9;
  series = series * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  series = series * square + 2.0f;
  value = largest(x, all(0.0f)) + series * ratio;
  const Float8 inverse = 1.0f / (1.0f + small);
  slope = x > 0.0f ? inverse : small * inverse;
}

// 8 samples of a ray, those of a ray that are not filled have no length.
struct Packet {
  Int8 node;              // where the lowest of the 8 nodes lies in the grid, in floats
  Int8 slot;              // and in the gradient
  Float8 share[3];        // of the upper nodes along x, y and z
  Float8 t, length;
  Float8 value[4];        // raw values; then colours in the last three; then gradients of the raw values
  Float8 after;           // light that is left behind the sample
  Float8 weight;
  Float8 slope;           // derivative of the optical depth by the raw density; 0 for samples that light does not reach
};

struct Numbers {
  float step, border, shift, scale, stop, depth_reach;

  Numbers(double step, double border, double shift, double scale, double stop, double depth_reach)
      : step(step), border(border), shift(shift), scale(scale), stop(stop), depth_reach(depth_reach) {}
};

// A tensor whose last two dimensions lie packed, copied only if they do not.
inline Tensor packed(const Tensor& grid) {
  return grid.stride(3) == 1 && grid.stride(2) == 4 ? grid : torch::stable::contiguous(grid);
}

// Contiguous values of a tensor that may be missing.
struct Values {
  std::optional<Tensor> kept;
  const float* data = nullptr;

  explicit Values(const OptionalTensor& tensor) {
    if (!tensor.has_value()) return;
    kept = torch::stable::contiguous(*tensor);
    data = static_cast<const float*>(kept->const_data_ptr());
  }
  explicit Values(const Tensor& tensor) : Values(OptionalTensor(tensor)) {}
};

// What rays share.
struct Scene {
  Scene(const Tensor& grid_tensor, const Tensor& origins, const Tensor& directions, const OptionalTensor& target,
        const OptionalTensor& target_depth, const OptionalTensor& jitter, const OptionalTensor& occupancy,
        const Numbers& numbers)
      : numbers(numbers), kept(packed(grid_tensor)), origins(origins), directions(directions), target(target),
        target_depth(target_depth), jitter(jitter), rays(origins.size(0)) {
    grid = static_cast<const float*>(kept.const_data_ptr());
    const float span = 2 * (1 + numbers.border);
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t nodes = kept.size(axis);
      stride[axis] = static_cast<int32_t>(kept.stride(axis));
      scale[axis] = nodes / span;
      offset[axis] = 0.5f * nodes - 0.5f;
      last[axis] = static_cast<float>(nodes - 1);
      last_cell[axis] = static_cast<int32_t>(nodes - 2);
      cells[axis] = static_cast<int32_t>(nodes / 2);
      slot_stride[axis] = stride[axis];
    }
    if (occupancy.has_value()) {
      kept_occupancy = torch::stable::contiguous(*occupancy);
      this->occupancy = static_cast<const uint8_t*>(kept_occupancy->const_data_ptr());
    }
  }

  // Says how a gradient lies in memory.
  void write_to(const Tensor& gradient) {
    const int64_t first = gradient.dim() - 4;
    for (int axis = 0; axis < 3; ++axis) slot_stride[axis] = static_cast<int32_t>(gradient.stride(first + axis));
  }

  Numbers numbers;
  Tensor kept;
  Values origins, directions, target, target_depth, jitter;
  int64_t rays;
  const float* grid;
  int32_t stride[3], slot_stride[3], last_cell[3], cells[3];
  float scale[3], offset[3], last[3];
  std::optional<Tensor> kept_occupancy;
  const uint8_t* occupancy = nullptr;
};

// What a ray gives.
struct Rendered {
  float colour[3], transmittance, depth, colour_error, depth_error;
};

// The derivatives of a loss by that.
struct Derivatives {
  float colour[3], transmittance, depth, colour_error, depth_error;
};

// A ray on its way: its samples so far.
class March {
 public:
  explicit March(const Scene& scene) : scene_(scene), packets_(16) {}

  void begin(int64_t ray) {
    const Numbers& numbers = scene_.numbers;
    float low = 0.0f, high = std::numeric_limits<float>::infinity();
    const float side = numbers.border > 0 ? kFar : 1.0f;
    for (int axis = 0; axis < 3; ++axis) {
      const float o = origin_[axis] = scene_.origins.data[3 * ray + axis];
      const float d = direction_[axis] = scene_.directions.data[3 * ray + axis];
      if (d == 0.0f) {
        if (!(std::fabs(o) <= side)) high = -1.0f;
        continue;
      }
      const float first = (-side - o) / d, second = (side - o) / d;
      low = std::max(low, std::min(first, second));
      high = std::min(high, std::max(first, second));
    }
    start_ = low;
    end_ = high;
    blocks_ = 0;
    count_ = 0;
    jitter_ = scene_.jitter.data == nullptr ? 0.5f : scene_.jitter.data[ray];
  }

  // Gathers samples until there are so many; false if the ray ends before. Asks for the nodes around them, and for their
  // places in the gradient, if there is one.
  bool march_to(int64_t wanted, const float* gradient) {
    while (count_ < wanted) {
      if (!(start_ < end_) || blocks_ >= kMaxBlocks) return false;
      march(gradient);
    }
    return true;
  }

  // Fills the last packet with samples of no length. There are no more then.
  void end() {
    for (; count_ % kBlock != 0; ++count_) {
      Packet& last = packets_[count_ / kBlock];
      const int lane = count_ % kBlock;
      last.node[lane] = last.node[0];
      for (Float8& share : last.share) share[lane] = 0.0f;
      last.t[lane] = last.length[lane] = 0.0f;
    }
  }

  Packet& packet(int64_t index) { return packets_[index]; }
  int64_t count() const { return count_; }

 private:
  // The next 8 segments.
  void march(const float* gradient) {
    const Numbers& numbers = scene_.numbers;
    float segment = numbers.step;
    if (numbers.border > 0) {
      float reach = 0.0f;
      for (int axis = 0; axis < 3; ++axis) reach = std::max(reach, std::fabs(origin_[axis] + start_ * direction_[axis]));
      if (reach > 1.0f) segment *= std::max(reach, reach * reach / (4 * numbers.border));
    }
    const Float8 begins = start_ + Float8{0, 1, 2, 3, 4, 5, 6, 7} * segment;
    const Float8 length = largest(least(end_ - begins, all(segment)), all(0.0f));
    const Float8 t = begins + jitter_ * length;
    start_ += kBlock * segment;
    ++blocks_;
    Float8 place[3];
    for (int axis = 0; axis < 3; ++axis) place[axis] = origin_[axis] + t * direction_[axis];
    if (numbers.border > 0) {
      const Float8 reach = largest(largest(magnitude(place[0]), magnitude(place[1])), largest(magnitude(place[2]), all(1.0f)));
      const Float8 inverse = 1.0f / reach;
      const Float8 factor = ((1 + numbers.border) - numbers.border * inverse) * inverse;
      for (int axis = 0; axis < 3; ++axis) place[axis] *= factor;
    }
    Int8 cell[3];
    for (int axis = 0; axis < 3; ++axis) {
      const Float8 at = place[axis] * scene_.scale[axis] + scene_.offset[axis];
      const Float8 inside = least(largest(at, all(0.0f)), all(scene_.last[axis]));
      cell[axis] = least(__builtin_convertvector(inside, Int8), Int8{} + scene_.last_cell[axis]);
      place[axis] = inside - __builtin_convertvector(cell[axis], Float8);
    }
    int keep = 0;
    if (scene_.occupancy == nullptr) {
      for (int k = 0; k < kBlock; ++k) keep |= (length[k] > 0.0f) << k;
    } else {
      const Int8 at = ((cell[0] >> 1) * scene_.cells[1] + (cell[1] >> 1)) * scene_.cells[2] + (cell[2] >> 1);
      for (int k = 0; k < kBlock; ++k) keep |= (length[k] > 0.0f && scene_.occupancy[at[k]] != 0) << k;
      if (keep == 0) return;
    }
    const Int8 node = cell[0] * scene_.stride[0] + cell[1] * scene_.stride[1] + cell[2] * 4;
    const Int8 slot = cell[0] * scene_.slot_stride[0] + cell[1] * scene_.slot_stride[1] + cell[2] * 4;
    if (static_cast<size_t>(count_ / kBlock + 3) > packets_.size()) packets_.resize(2 * packets_.size());
    for (int k = 0; k < kBlock; ++k) {
      if ((keep >> k & 1) == 0) continue;
      Packet& packet = packets_[count_ / kBlock];
      const int lane = count_ % kBlock;
      packet.node[lane] = node[k];
      packet.slot[lane] = slot[k];
      for (int axis = 0; axis < 3; ++axis) packet.share[axis][lane] = place[axis][k];
      packet.t[lane] = t[k];
      packet.length[lane] = length[k];
      prefetch<0>(scene_.grid + node[k], scene_.stride);
      if (gradient != nullptr) prefetch<1>(gradient + slot[k], scene_.slot_stride);
      ++count_;
    }
  }

  template <int kWrite>
  static void prefetch(const float* corner, const int32_t* stride) {
    __builtin_prefetch(corner, kWrite);
    __builtin_prefetch(corner + stride[1], kWrite);
    __builtin_prefetch(corner + stride[0], kWrite);
    __builtin_prefetch(corner + stride[0] + stride[1], kWrite);
  }

  const Scene& scene_;
  std::vector<Packet> packets_;
  float origin_[3], direction_[3];
  float jitter_, start_, end_;
  int64_t blocks_, count_;  // blocks marched, samples gathered
};

// Rays one after the other: render, then, if wanted, scatter. The beginning of the next one is gathered meanwhile.
class Tracer {
 public:
  // Of rays [begin, end), in this order; gradient: where they will be scattered to, or null.
  Tracer(const Scene& scene, int64_t begin, int64_t end, float* gradient)
      : scene_(scene), marches_{March(scene), March(scene)}, next_(begin), end_(end), gradient_(gradient) {
    if (next_ < end_) prepare();
  }

  Rendered render() {
    const int64_t ray = next_++;
    surface_ = scene_.target_depth.data == nullptr ? 0.0f : scene_.target_depth.data[ray];
    for (int c = 0; c < 3; ++c) target_[c] = scene_.target.data == nullptr ? 0.0f : scene_.target.data[3 * ray + c];
    march_ = &marches_[ray % 2];
    if (next_ < end_) prepare();
    packets_ = 0;
    samples_ = 0;
    light_ = 1.0f;
    bool stopped = false;
    while (!stopped && march_->march_to(kBlock * (packets_ + 1 + kPacketsAhead), gradient_)) stopped = light_up();
    const int64_t samples = march_->count();
    if (!stopped) march_->end();
    while (!stopped && kBlock * packets_ < samples) stopped = light_up();
    samples_ = std::min<int64_t>(samples_, samples);
    return gather();
  }

  // How many samples of the last ray light reaches.
  int32_t samples() const { return samples_; }

  // Adds the gradient of the last ray's loss.
  void scatter(const Derivatives& by) {
    const Float8 red = all(by.colour[0]), green = all(by.colour[1]), blue = all(by.colour[2]);
    const bool has_target = scene_.target.data != nullptr, has_depth = surface_ > 0;
    const Float8 twice = all(2 * by.colour_error);
    float behind = by.transmittance * light_;
    for (int64_t p = packets_ - 1; p >= 0; --p) {
      Packet& packet = march_->packet(p);
      Float8* value = packet.value;
      Float8 of_weight = value[1] * red + value[2] * green + value[3] * blue + packet.t * by.depth;
      Float8 of_colour[3] = {red, green, blue};
      if (has_target) {
        Float8 error = Float8{};
        for (int c = 0; c < 3; ++c) {
          const Float8 distance = value[1 + c] - target_[c];
          error += distance * distance;
          of_colour[c] += twice * distance;
        }
        of_weight += error * by.colour_error;
      }
      if (has_depth) of_weight += depth_error(packet) * by.depth_error;
      const Float8 gain = packet.weight * of_weight;
      const Float8 gains = running_sum<-1>(gain);
      const Float8 lost = behind + moved<-1>(gains);
      behind += gains[0];
      value[0] = (packet.after * of_weight - lost) * packet.slope;
      for (int c = 0; c < 3; ++c) {
        value[1 + c] = packet.weight * of_colour[c] * value[1 + c] * (1.0f - value[1 + c]);
      }
      add(packet, std::min<int64_t>(kBlock, samples_ - kBlock * p));
    }
  }

 private:
  // The first samples of the next ray.
  void prepare() {
    March& march = marches_[next_ % 2];
    march.begin(next_);
    march.march_to(kBlock * (1 + kPacketsAhead), gradient_);
  }

  // The next packet; whether no light is left behind it.
  bool light_up() {
    Packet& packet = march_->packet(packets_++);
    look_up(packet);
    return shade(packet);
  }

  // Raw values of a packet's samples.
  void look_up(Packet& packet) const {
    for (int k = 0; k < kBlock; ++k) {
      const float* corner = scene_.grid + packet.node[k];
      const Float8 a = load(corner), b = load(corner + scene_.stride[1]);
      const Float8 c = load(corner + scene_.stride[0]), d = load(corner + scene_.stride[0] + scene_.stride[1]);
      const float y = packet.share[1][k];
      const Float8 near = a + y * (b - a), far = c + y * (d - c);
      const Float8 both = near + packet.share[0][k] * (far - near);  // the 4 values of the lower and the upper node
      Float4 low, high;
      std::memcpy(&low, &both, sizeof low);
      std::memcpy(&high, reinterpret_cast<const char*>(&both) + sizeof low, sizeof high);
      const Float4 values = low + packet.share[2][k] * (high - low);
      for (int c = 0; c < 4; ++c) packet.value[c][k] = values[c];
    }
  }

  // Optical depths, and what is left of the light; whether it ends here.
  bool shade(Packet& packet) {
    Float8 value, slope;
    softplus(packet.value[0] + scene_.numbers.shift, value, slope);
    const Float8 factor = scene_.numbers.scale * packet.length;
    const Float8 after = light_ * exponential(-running_sum<1>(value * factor));
    const Float8 before = moved<1>(after) + Float8{light_};
    // They fall, so that those which light reaches come first.
    int reached = 0;
    for (int k = 0; k < kBlock; ++k) reached += before[k] >= scene_.numbers.stop;
    const Int8 lit = before >= scene_.numbers.stop;
    packet.after = after;
    packet.weight = lit ? before - after : Float8{};
    packet.slope = lit ? slope * factor : Float8{};
    samples_ += reached;
    if (reached > 0) light_ = after[reached - 1];
    return reached < kBlock;
  }

  Float8 depth_error(const Packet& packet) const {
    return least(magnitude(packet.t - surface_) * (1.0f / scene_.numbers.depth_reach), all(1.0f));
  }

  // Colours of all packets, and the sums.
  Rendered gather() {
    Float8 colour[3] = {}, depth = {}, colour_error = {}, depth_error = {};
    const bool has_target = scene_.target.data != nullptr, has_depth = surface_ > 0;
    for (int64_t p = 0; p < packets_; ++p) {
      Packet& packet = march_->packet(p);
      for (int c = 0; c < 3; ++c) {
        packet.value[1 + c] = sigmoid(packet.value[1 + c]);
        colour[c] += packet.weight * packet.value[1 + c];
      }
      depth += packet.weight * packet.t;
      if (has_target) {
        Float8 error = {};
        for (int c = 0; c < 3; ++c) {
          const Float8 distance = packet.value[1 + c] - target_[c];
          error += distance * distance;
        }
        colour_error += packet.weight * error;
      }
      if (has_depth) depth_error += packet.weight * this->depth_error(packet);
    }
    return {{sum(colour[0]), sum(colour[1]), sum(colour[2])}, light_, sum(depth), sum(colour_error), sum(depth_error)};
  }

  // Adds the gradients of a packet's raw values to those of their nodes.
  void add(const Packet& packet, int64_t samples) const {
    const int64_t along_x = scene_.slot_stride[0], along_y = scene_.slot_stride[1];
    for (int64_t k = 0; k < samples; ++k) {
      const Float4 values = {packet.value[0][k], packet.value[1][k], packet.value[2][k], packet.value[3][k]};
      const Float4 high = values * packet.share[2][k], low = values - high;
      Float8 both;
      std::memcpy(&both, &low, sizeof low);
      std::memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
      const Float8 far = both * packet.share[0][k], near = both - far;
      const Float8 far_high = far * packet.share[1][k], near_high = near * packet.share[1][k];
      float* corner = gradient_ + packet.slot[k];
      store(corner, load(corner) + (near - near_high));
      store(corner + along_y, load(corner + along_y) + near_high);
      store(corner + along_x, load(corner + along_x) + (far - far_high));
      store(corner + along_x + along_y, load(corner + along_x + along_y) + far_high);
    }
  }

  const Scene& scene_;
  March marches_[2];  // of the current and of the next ray, by turns
  March* march_ = nullptr;
  int64_t next_, end_;
  float* gradient_;
  float target_[3], surface_, light_;
  int64_t packets_;  // lit
  int32_t samples_;
};

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors render_rays(const Tensor& grid, const Tensor& origins, const Tensor& directions,
                        const OptionalTensor& target, const OptionalTensor& target_depth, const OptionalTensor& jitter,
                        const OptionalTensor& occupancy, double step, double border, double density_shift,
                        double density_scale, double stop, double depth_reach) {
  const Scene scene(grid, origins, directions, target, target_depth, jitter, occupancy,
                    Numbers(step, border, density_shift, density_scale, stop, depth_reach));
  Tensor colour = torch::stable::new_empty(grid, {scene.rays, 3});
  Tensor rest[4];
  float* to[4];
  for (int i = 0; i < 4; ++i) {
    rest[i] = torch::stable::new_empty(grid, {scene.rays});
    to[i] = static_cast<float*>(rest[i].mutable_data_ptr());
  }
  float* colours = static_cast<float*>(colour.mutable_data_ptr());
  torch::stable::parallel_for(0, scene.rays, kRaysPerTask, [&](int64_t begin, int64_t end) {
    Tracer tracer(scene, begin, end, nullptr);
    for (int64_t ray = begin; ray < end; ++ray) {
      const Rendered rendered = tracer.render();
      std::copy_n(rendered.colour, 3, colours + 3 * ray);
      to[0][ray] = rendered.transmittance;
      to[1][ray] = rendered.depth;
      to[2][ray] = rendered.colour_error;
      to[3][ray] = rendered.depth_error;
    }
  });
  return {colour, rest[0], rest[1], rest[2], rest[3]};
}

Tensor render_rays_backward(const Tensor& grad_colour, const Tensor& grad_transmittance, const Tensor& grad_depth,
                            const Tensor& grad_colour_error, const Tensor& grad_depth_error, const Tensor& grid,
                            const Tensor& origins, const Tensor& directions, const OptionalTensor& target,
                            const OptionalTensor& target_depth, const OptionalTensor& jitter,
                            const OptionalTensor& occupancy, double step, double border, double density_shift,
                            double density_scale, double stop, double depth_reach) {
  Scene scene(grid, origins, directions, target, target_depth, jitter, occupancy,
              Numbers(step, border, density_shift, density_scale, stop, depth_reach));
  const Values colour(grad_colour), transmittance(grad_transmittance), depth(grad_depth);
  const Values colour_error(grad_colour_error), depth_error(grad_depth_error);
  const int64_t x = grid.size(0), y = grid.size(1), z = grid.size(2), floats = x * y * z * 4;
  const int64_t parts = std::min(kGradientParts, 1 + scene.rays / kRaysPerPart);
  // The first part takes the sum.
  Tensor result = with_large_pages(torch::stable::new_empty(grid, {x, y, z, 4}));
  Tensor others = with_large_pages(torch::stable::new_empty(grid, {parts - 1, x, y, z, 4}));
  scene.write_to(result);
  float* first = static_cast<float*>(result.mutable_data_ptr());
  float* second = static_cast<float*>(others.mutable_data_ptr());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t from = part * scene.rays / parts, to = (part + 1) * scene.rays / parts;
      float* gradient = part == 0 ? first : second + (part - 1) * floats;
      std::memset(gradient, 0, floats * sizeof(float));
      Tracer tracer(scene, from, to, gradient);
      for (int64_t ray = from; ray < to; ++ray) {
        tracer.render();
        const float* colours = colour.data + 3 * ray;
        tracer.scatter({{colours[0], colours[1], colours[2]},
                        transmittance.data[ray],
                        depth.data[ray],
                        colour_error.data[ray],
                        depth_error.data[ray]});
      }
    }
  });
  if (parts > 1) {
    torch::stable::parallel_for(0, floats, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t part = 0; part < parts - 1; ++part) {
        for (int64_t i = begin; i < end; ++i) first[i] += second[part * floats + i];
      }
    });
  }
  return result;
}

FiveTensors radiance_gradient(Tensor gradient, const Tensor& grid, const Tensor& origins, const Tensor& directions,
                              const Tensor& target, const OptionalTensor& target_depth, const OptionalTensor& weight,
                              const OptionalTensor& jitter, const OptionalTensor& occupancy, double step, double border,
                              double density_shift, double density_scale, double stop, double depth_reach,
                              const std::vector<double>& background, double colour_error_weight,
                              double depth_error_weight) {
  Scene scene(grid, origins, directions, target, target_depth, jitter, occupancy,
              Numbers(step, border, density_shift, density_scale, stop, depth_reach));
  scene.write_to(gradient);
  const Values weights(weight);
  const int64_t rays = scene.rays, parts = gradient.size(0), part_stride = gradient.stride(0);
  Tensor colour = torch::stable::new_empty(grid, {rays, 3});
  Tensor transmittance = torch::stable::new_empty(grid, {rays}), depth = torch::stable::new_empty(grid, {rays});
  Tensor loss = torch::stable::new_empty(grid, {rays});
  Tensor samples = torch::stable::new_empty(grid, {rays}, ScalarType::Int);
  float* colours = static_cast<float*>(colour.mutable_data_ptr());
  float* lights = static_cast<float*>(transmittance.mutable_data_ptr());
  float* depths = static_cast<float*>(depth.mutable_data_ptr());
  float* losses = static_cast<float*>(loss.mutable_data_ptr());
  int32_t* counts = static_cast<int32_t*>(samples.mutable_data_ptr());
  float* gradients = static_cast<float*>(gradient.mutable_data_ptr());
  const float each = rays > 0 ? 1.0f / rays : 0.0f;
  const float of_colours = colour_error_weight, of_depths = depth_error_weight;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      // Rays i with i * parts / rays == part.
      const int64_t first = (part * rays + parts - 1) / parts, last = ((part + 1) * rays + parts - 1) / parts;
      Tracer tracer(scene, first, last, gradients + part * part_stride);
      for (int64_t ray = first; ray < last; ++ray) {
        const Rendered rendered = tracer.render();
        const float scale = weights.data == nullptr ? 1.0f : weights.data[ray];
        const float known = scene.target_depth.data != nullptr && scene.target_depth.data[ray] > 0 ? of_depths : 0.0f;
        Derivatives by{{}, known * each, 0.0f, scale * of_colours * each, known * each};
        float squares = 0.0f;
        for (int c = 0; c < 3; ++c) {
          const float behind = static_cast<float>(background[c]);
          const float distance =
              rendered.colour[c] + rendered.transmittance * behind - scene.target.data[3 * ray + c];
          squares += distance * distance;
          by.colour[c] = 2 * scale * each * distance;
          by.transmittance += by.colour[c] * behind;
          colours[3 * ray + c] = rendered.colour[c];
        }
        tracer.scatter(by);
        lights[ray] = rendered.transmittance;
        depths[ray] = rendered.depth;
        losses[ray] = scale * (squares + of_colours * rendered.colour_error) +
                      known * (rendered.depth_error + rendered.transmittance);
        counts[ray] = tracer.samples();
      }
    }
  });
  return {colour, transmittance, depth, loss, samples};
}

}  // namespace
}  // namespace geo3d

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("render_rays", TORCH_BOX(&geo3d::render_rays));
  m.impl("render_rays_backward", TORCH_BOX(&geo3d::render_rays_backward));
  m.impl("radiance_gradient", TORCH_BOX(&geo3d::radiance_gradient));
}
