// CPU kernel of geo3d::farthest_point_sample. geo3d/ops/farthest_point_sample.py tells what it computes and has checked the
// arguments.
//
// Points lie in buckets of near ones, and buckets in groups. A sample changes nothing in a bucket whose box is as far from
// it as the bucket's farthest point is from the samples before, and most buckets are soon so. Rounding keeps order, so the
// computed distance to a box never exceeds that to a point inside: what is passed over would not have changed to the last
// bit. Compiled without contraction of products and sums (see CMakeLists.txt), for the same bits everywhere.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "farthest_point_sample.h"
#include "vectors.h"

namespace {

using geo3d::FarthestOrder;
using geo3d::FloatVector;
using geo3d::kLanes;
using geo3d::load;
using geo3d::store;
using torch::stable::Tensor;

constexpr int64_t kBucket = 64;  // points; whole vectors on every processor
constexpr int64_t kGroup = 16;   // buckets; likewise
constexpr float kNone = -1;      // in place of a distance: nothing there that could be taken

struct Point {
  float x, y, z;
};

FloatVector larger(FloatVector a, FloatVector b) { return a > b ? a : b; }
FloatVector smaller(FloatVector a, FloatVector b) { return a < b ? a : b; }

float largest(FloatVector numbers) {
  float lanes[kLanes];
  store(lanes, numbers);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = std::max(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}

// The largest of whole vectors of numbers, none below kNone.
float largest(const float* numbers, int64_t count) {
  FloatVector most = FloatVector{} + kNone;
  for (int64_t i = 0; i < count; i += kLanes) most = larger(load(numbers + i), most);
  return largest(most);
}

// Arrays of floats of one length, whole vectors each.
template <int kArrays>
class Arrays {
 public:
  Arrays(int64_t length, float value) : length_(length), numbers_(kArrays * length, value) {}

  float* operator[](int array) { return numbers_.data() + array * length_; }
  const float* operator[](int array) const { return numbers_.data() + array * length_; }

 private:
  int64_t length_;
  std::vector<float> numbers_;
};

// Boxes around points, and how far from all samples the farthest point inside of each is.
class Boxes {
 public:
  explicit Boxes(int64_t count) : count_(geo3d::padded(count)), sides_(count_, 0), farthest_(count_, kNone) {}

  int64_t padded_count() const { return count_; }
  float& farthest(int64_t box) { return farthest_[box]; }
  const float* farthest() const { return farthest_.data(); }

  void set(int64_t box, const float* low, const float* high) {
    for (int axis = 0; axis < 3; ++axis) {
      sides_[axis][box] = low[axis];
      sides_[3 + axis][box] = high[axis];
    }
  }

  // The box around `count` boxes of the level below.
  void include(int64_t box, const Boxes& below, int64_t first, int64_t count) {
    for (int axis = 0; axis < 3; ++axis) {
      const float* low = below.sides_[axis] + first;
      const float* high = below.sides_[3 + axis] + first;
      sides_[axis][box] = *std::min_element(low, low + count);
      sides_[3 + axis][box] = *std::max_element(high, high + count);
    }
  }

  // Calls visit(box) for those of whole vectors of boxes that have a point nearer to this one than to the samples.
  template <typename Visit>
  void for_each_nearer(const Point& point, int64_t first, int64_t count, const Visit& visit) const {
    for (int64_t i = first; i < first + count; i += kLanes) {
      FloatVector squares[3];
      const float xyz[3] = {point.x, point.y, point.z};
      for (int axis = 0; axis < 3; ++axis) {
        const FloatVector below = load(sides_[axis] + i) - xyz[axis], above = xyz[axis] - load(sides_[3 + axis] + i);
        const FloatVector gap = larger(larger(below, above), FloatVector{});
        squares[axis] = gap * gap;
      }
      float distances[kLanes];
      store(distances, (squares[0] + squares[1]) + squares[2]);
      for (int lane = 0; lane < kLanes; ++lane) {
        if (distances[lane] < farthest_[i + lane]) visit(i + lane);
      }
    }
  }

 private:
  int64_t count_;
  Arrays<6> sides_;
  std::vector<float> farthest_;
};

// The points of a cloud that can be taken, and their squared distances to the samples so far.
class Cloud {
 public:
  Cloud(const float* points, const std::vector<int32_t>& order, const FarthestOrder& ties)
      : count_(static_cast<int64_t>(order.size())),
        buckets_count_((count_ + kBucket - 1) / kBucket),
        points_(buckets_count_ * kBucket, 0),
        distance_(buckets_count_ * kBucket, kNone),
        rank_(buckets_count_ * kBucket, std::numeric_limits<int32_t>::max()),
        buckets_((buckets_count_ + kGroup - 1) / kGroup * kGroup),
        groups_((buckets_count_ + kGroup - 1) / kGroup) {
    for (int64_t bucket = 0; bucket < buckets_count_; ++bucket) {
      const int64_t begin = bucket * kBucket, end = std::min(begin + kBucket, count_);
      float low[3], high[3];
      std::copy_n(points + 3 * order[begin], 3, low);
      std::copy_n(points + 3 * order[begin], 3, high);
      for (int64_t i = begin; i < end; ++i) {
        const float* xyz = points + 3 * order[i];
        for (int axis = 0; axis < 3; ++axis) {
          points_[axis][i] = xyz[axis];
          low[axis] = std::min(low[axis], xyz[axis]);
          high[axis] = std::max(high[axis], xyz[axis]);
        }
        distance_[i] = geo3d::kFarthestStart;
        rank_[i] = ties.rank(order[i]);
      }
      buckets_.set(bucket, low, high);
      buckets_.farthest(bucket) = geo3d::kFarthestStart;
    }
    for (int64_t bucket = 0; bucket < buckets_count_; bucket += kGroup) {
      groups_.include(bucket / kGroup, buckets_, bucket, std::min(kGroup, buckets_count_ - bucket));
      groups_.farthest(bucket / kGroup) = geo3d::kFarthestStart;
    }
  }

  // Shorten the distances of points that are nearer to this one than to those before.
  void take(const Point& point) {
    groups_.for_each_nearer(point, 0, groups_.padded_count(), [&](int64_t group) {
      buckets_.for_each_nearer(point, group * kGroup, kGroup,
                               [&](int64_t bucket) { buckets_.farthest(bucket) = shorten(bucket, point); });
      groups_.farthest(group) = largest(buckets_.farthest() + group * kGroup, kGroup);
    });
  }

  float farthest_distance() const { return largest(groups_.farthest(), groups_.padded_count()); }

  // The rank of the point that is so far from all samples, and first in rank of those.
  int32_t first_rank(float distance) const {
    int32_t first = std::numeric_limits<int32_t>::max();
    for (int64_t group = 0; group < groups_.padded_count(); ++group) {
      if (groups_.farthest()[group] != distance) continue;
      for (int64_t bucket = group * kGroup; bucket < (group + 1) * kGroup; ++bucket) {
        if (buckets_.farthest()[bucket] != distance) continue;
        for (int64_t i = bucket * kBucket; i < (bucket + 1) * kBucket; ++i) {
          first = std::min(first, distance_[i] == distance ? rank_[i] : std::numeric_limits<int32_t>::max());
        }
      }
    }
    return first;
  }

 private:
  float shorten(int64_t bucket, const Point& point) {
    float* const distance = distance_.data() + bucket * kBucket;
    const float *x = points_[0] + bucket * kBucket, *y = points_[1] + bucket * kBucket, *z = points_[2] + bucket * kBucket;
    FloatVector most = FloatVector{} + kNone;
    for (int64_t i = 0; i < kBucket; i += kLanes) {
      const FloatVector dx = load(x + i) - point.x, dy = load(y + i) - point.y, dz = load(z + i) - point.z;
      const FloatVector shorter = smaller((dx * dx + dy * dy) + dz * dz, load(distance + i));
      store(distance + i, shorter);
      most = larger(shorter, most);
    }
    return largest(most);
  }

  int64_t count_, buckets_count_;
  Arrays<3> points_;
  std::vector<float> distance_;
  std::vector<int32_t> rank_;  // of what fills the last bucket: after all others
  Boxes buckets_, groups_;
};

// Points in an order in which near ones are near: along a Z-curve.
class CurveOrder {
 public:
  explicit CurveOrder(const float* points) : points_(points) {}

  void sort(std::vector<int32_t>& rows) {
    keys_.resize(rows.size());
    other_.resize(rows.size());
    sort(rows.data(), static_cast<int64_t>(rows.size()));
  }

 private:
  struct Key {
    uint32_t code;
    int32_t row;
  };
  static constexpr int kDigit = 8;             // bits
  static constexpr int64_t kCrowd = 2 * kBucket;  // points

  void sort(int32_t* rows, int64_t count) {
    if (count <= kBucket) return;
    float low[3], high[3];
    for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = points_[3 * rows[0] + axis];
    for (int64_t i = 1; i < count; ++i) {
      for (int axis = 0; axis < 3; ++axis) {
        low[axis] = std::min(low[axis], points_[3 * rows[i] + axis]);
        high[axis] = std::max(high[axis], points_[3 * rows[i] + axis]);
      }
    }
    double extent = 0;
    for (int axis = 0; axis < 3; ++axis) extent = std::max(extent, double{high[axis]} - low[axis]);
    if (extent == 0) return;
    int bits = 4;  // of an axis
    while (bits < 10 && int64_t{1} << (2 * bits) < 4 * count) ++bits;
    const double scale = ((1 << bits) - 0.5) / extent;
    for (int64_t i = 0; i < count; ++i) {
      const float* xyz = points_ + 3 * rows[i];
      uint32_t code = 0;
      for (int axis = 0; axis < 3; ++axis) {
        code |= spread(static_cast<uint32_t>((double{xyz[axis]} - low[axis]) * scale)) << axis;
      }
      keys_[i] = {code, rows[i]};
    }
    for (int shift = 0; shift < 3 * bits; shift += kDigit) distribute(count, shift);
    std::vector<std::pair<int64_t, int64_t>> crowded;  // cells with many points, where a few others lie far away
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = keys_[i].row;
      if (i + 1 < count && keys_[i + 1].code == keys_[i].code) continue;
      if (i + 1 - first > kCrowd) crowded.push_back({first, i + 1 - first});
      first = i + 1;
    }
    for (const auto& [begin, points] : crowded) sort(rows + begin, points);
  }

  // Ten bits, each with two zeros behind it.
  static uint32_t spread(uint32_t bits) {
    bits = (bits | bits << 16) & 0x030000FF;
    bits = (bits | bits << 8) & 0x0300F00F;
    bits = (bits | bits << 4) & 0x030C30C3;
    return (bits | bits << 2) & 0x09249249;
  }

  void distribute(int64_t count, int shift) {
    constexpr uint32_t kMask = (1 << kDigit) - 1;
    std::array<int64_t, kMask + 1> places{};
    for (int64_t i = 0; i < count; ++i) ++places[keys_[i].code >> shift & kMask];
    int64_t place = 0;
    for (int64_t& next : places) place += std::exchange(next, place);
    for (int64_t i = 0; i < count; ++i) other_[places[keys_[i].code >> shift & kMask]++] = keys_[i];
    keys_.swap(other_);
  }

  const float* points_;
  std::vector<Key> keys_, other_;
};

void sample(const float* points, int64_t size, int64_t start, int64_t count, bool published_ties, bool skip_near_origin,
            int64_t first_row, int64_t* samples) {
  std::vector<int32_t> rows;
  rows.reserve(size);
  for (int64_t row = 0; row < size; ++row) {
    const float x = points[3 * row], y = points[3 * row + 1], z = points[3 * row + 2];
    if (skip_near_origin && (x * x + y * y) + z * z <= geo3d::kNearOrigin) continue;
    rows.push_back(static_cast<int32_t>(row));
  }
  CurveOrder(points).sort(rows);
  const FarthestOrder ties(size, published_ties);
  Cloud cloud(points, rows, ties);
  int64_t row = start;
  for (int64_t place = 0;; ++place) {
    samples[place] = first_row + row;
    if (place == count - 1) return;
    cloud.take({points[3 * row], points[3 * row + 1], points[3 * row + 2]});
    const float distance = cloud.farthest_distance();
    row = distance == kNone ? 0 : ties.row(cloud.first_rank(distance));
    if (distance <= 0) {  // from here on it is the same point again and again
      std::fill(samples + place + 1, samples + count, first_row + row);
      return;
    }
  }
}

Tensor farthest_point_sample(const Tensor& points, const Tensor& offsets, std::optional<Tensor> start, int64_t count,
                             bool published_ties, bool skip_near_origin) {
  const Tensor packed = torch::stable::contiguous(points), clouds_of = torch::stable::contiguous(offsets);
  const float* xyz = static_cast<const float*>(packed.const_data_ptr());
  const int64_t* first_row = static_cast<const int64_t*>(clouds_of.const_data_ptr());
  std::optional<Tensor> starts;
  if (start.has_value()) starts = torch::stable::contiguous(*start);
  const int64_t* first_sample = starts.has_value() ? static_cast<const int64_t*>(starts->const_data_ptr()) : nullptr;
  const int64_t clouds = clouds_of.size(0) - 1;
  Tensor samples = torch::stable::new_empty(offsets, {clouds * count});
  int64_t* out = static_cast<int64_t*>(samples.mutable_data_ptr());
  for (int64_t cloud = 0; cloud < clouds; ++cloud) {
    STD_TORCH_CHECK(first_row[cloud + 1] - first_row[cloud] <= geo3d::kFarthestLargest,
                    "farthest_point_sample: a cloud has at most ", geo3d::kFarthestLargest, " points, got ",
                    first_row[cloud + 1] - first_row[cloud]);
  }
  torch::stable::parallel_for(0, clouds, 1, [&](int64_t begin, int64_t end) {
    for (int64_t cloud = begin; cloud < end; ++cloud) {
      const int64_t first = first_row[cloud], size = first_row[cloud + 1] - first;
      sample(xyz + 3 * first, size, first_sample == nullptr ? 0 : first_sample[cloud], count, published_ties,
             skip_near_origin, first, out + cloud * count);
    }
  });
  return samples;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&farthest_point_sample));
}
