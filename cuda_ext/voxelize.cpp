// CPU kernel of geo3d::voxelize. geo3d/ops/voxelize.py tells what it computes and has checked the arguments.

#include "cell_sort.h"
#include "voxelize.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using geo3d::Cell;
using geo3d::CellRange;
using geo3d::kMaxCoordinate;
using geo3d::RowChunks;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kVoxelsPerTask = 8192;

// The points of all scenes, and the lattice of each.
template <typename Scalar>
class Points {
 public:
  Points(const Tensor& xyz, const Tensor& offsets, const Tensor& origin, double voxel_size)
      : data_(static_cast<const Scalar*>(xyz.const_data_ptr())),
        count_(xyz.size(0)),
        point_stride_(xyz.stride(0)),
        axis_stride_(xyz.stride(1)),
        voxel_size_(voxel_size) {
    for (int64_t i = 0; i < offsets.numel(); ++i) {
      offsets_.push_back(static_cast<const int64_t*>(offsets.const_data_ptr())[i * offsets.stride(0)]);
    }
    const bool is_double = origin.scalar_type() == ScalarType::Double;
    for (int64_t scene = 0; scene < origin.size(0); ++scene) {
      std::array<double, 3> corner;
      for (int64_t axis = 0; axis < 3; ++axis) {
        const int64_t place = scene * origin.stride(0) + axis * origin.stride(1);
        corner[axis] = is_double ? static_cast<const double*>(origin.const_data_ptr())[place]
                                 : static_cast<const float*>(origin.const_data_ptr())[place];
      }
      origins_.push_back(corner);
    }
  }

  int64_t count() const { return count_; }
  Scalar value(int64_t row, int axis) const { return data_[row * point_stride_ + axis * axis_stride_]; }

  // Calls work(scene, begin, end) for the part of each scene that lies in a range of rows.
  template <typename Work>
  void for_each_scene(int64_t begin, int64_t end, const Work& work) const {
    int64_t scene = std::upper_bound(offsets_.begin(), offsets_.end(), begin) - offsets_.begin() - 1;
    for (; begin < end; ++scene) {
      const int64_t stop = std::min(end, offsets_[scene + 1]);
      if (begin < stop) work(scene, begin, stop);
      begin = std::max(begin, stop);
    }
  }

  // Where a value lies on its axis, in cells; the cell itself is the whole number below.
  double place(int64_t scene, int axis, Scalar value) const {
    return (static_cast<double>(value) - origins_[scene][axis]) / voxel_size_;
  }

  // The value must be within reach.
  int64_t cell(int64_t scene, int axis, Scalar value) const {
    const double exact = place(scene, axis, value);
    const int32_t toward_zero = static_cast<int32_t>(exact);
    return toward_zero - (exact < toward_zero);
  }

  bool is_within_reach(int64_t scene, int axis, Scalar value) const {
    const double exact = place(scene, axis, value);
    return exact >= -kMaxCoordinate && exact < kMaxCoordinate + 1;  // false for NaN
  }

  // Says how many points have no cell; called when there are some.
  void refuse() const {
    geo3d::BadPoints bad;
    for_each_scene(0, count_, [&](int64_t scene, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        bool finite = true, near = true;
        for (int axis = 0; axis < 3; ++axis) {
          finite = finite && std::isfinite(value(row, axis));
          near = near && is_within_reach(scene, axis, value(row, axis));
        }
        if (!finite && bad.not_finite++ == 0) bad.first_not_finite = row;
        if (!near && bad.too_far++ == 0) bad.first_too_far = row;
      }
    });
    geo3d::check_points(bad, count_);
  }

 private:
  const Scalar* data_;
  int64_t count_, point_stride_, axis_stride_;
  double voxel_size_;
  std::vector<int64_t> offsets_;
  std::vector<std::array<double, 3>> origins_;
};

// The range of the cells of a scene's points begin to end: a cell never decreases as the value rises.
// False where one of them has no cell.
template <typename Scalar>
bool include_scene(const Points<Scalar>& points, int64_t scene, int64_t begin, int64_t end, CellRange& range) {
  CellRange added;
  added.low[0] = added.high[0] = scene;
  std::array<Scalar, 3> low, high, zero{};
  low.fill(std::numeric_limits<Scalar>::infinity());
  high.fill(-std::numeric_limits<Scalar>::infinity());
  for (int64_t row = begin; row < end; ++row) {
    for (int axis = 0; axis < 3; ++axis) {
      const Scalar value = points.value(row, axis);
      low[axis] = value < low[axis] ? value : low[axis];
      high[axis] = value > high[axis] ? value : high[axis];
      zero[axis] += value * 0;  // NaN from NaN and infinities on
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (zero[axis] != 0 || !points.is_within_reach(scene, axis, low[axis]) ||
        !points.is_within_reach(scene, axis, high[axis])) {
      return false;
    }
    added.low[axis + 1] = points.cell(scene, axis, low[axis]);
    added.high[axis + 1] = points.cell(scene, axis, high[axis]);
  }
  range.include(added);
  return true;
}

template <typename Scalar>
CellRange range_of(const Points<Scalar>& points, const RowChunks& chunks) {
  std::vector<CellRange> ranges(chunks.count());
  std::vector<char> usable(chunks.count(), true);
  chunks.for_each([&](int64_t chunk, int64_t first, int64_t last) {
    points.for_each_scene(first, last, [&](int64_t scene, int64_t begin, int64_t end) {
      usable[chunk] = include_scene(points, scene, begin, end, ranges[chunk]) && usable[chunk];
    });
  });
  if (!std::all_of(usable.begin(), usable.end(), [](char yes) { return yes; })) points.refuse();
  CellRange range;
  for (const CellRange& part : ranges) range.include(part);
  return range;
}

struct Priority {
  const int64_t* data = nullptr;
  int64_t stride = 0;

  explicit Priority(const std::optional<Tensor>& tensor) {
    if (tensor) {
      data = static_cast<const int64_t*>(tensor->const_data_ptr());
      stride = tensor->stride(0);
    }
  }

  bool is_before(int64_t row, int64_t other) const {
    return data != nullptr && data[row * stride] < data[other * stride];
  }
};

template <typename Scalar>
std::tuple<Tensor, Tensor, Tensor> voxelize_points(const Tensor& xyz, const Tensor& offsets, const Tensor& origin,
                                                   const Priority& priority, double voxel_size) {
  const Points<Scalar> points(xyz, offsets, origin, voxel_size);
  const RowChunks chunks(points.count());
  const CellRange range = range_of(points, chunks);
  const auto make_cells = [&](int64_t first, int64_t last, const auto& take) {
    points.for_each_scene(first, last, [&](int64_t scene, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        take(row, Cell{scene, points.cell(scene, 0, points.value(row, 0)), points.cell(scene, 1, points.value(row, 1)),
                       points.cell(scene, 2, points.value(row, 2))});
      }
    });
  };
  Tensor inverse = torch::stable::new_empty(xyz, {points.count()}, ScalarType::Long), coords, index;
  geo3d::with_sorted_cells(chunks, range, make_cells, [&](const auto& sorted) {
    const std::vector<int64_t>& starts = sorted.starts();
    const int64_t count = static_cast<int64_t>(starts.size()) - 1;
    coords = torch::stable::new_empty(xyz, {count, 4}, ScalarType::Int);
    index = torch::stable::new_empty(xyz, {count}, ScalarType::Long);
    int32_t* const coords_data = static_cast<int32_t*>(coords.mutable_data_ptr());
    int64_t* const inverse_data = static_cast<int64_t*>(inverse.mutable_data_ptr());
    int64_t* const index_data = static_cast<int64_t*>(index.mutable_data_ptr());
    torch::stable::parallel_for(0, count, kVoxelsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t voxel = begin; voxel < end; ++voxel) {
        const Cell cell = sorted.cell(starts[voxel]);
        for (int axis = 0; axis < 4; ++axis) coords_data[4 * voxel + axis] = static_cast<int32_t>(cell[axis]);
        int64_t chosen = sorted.row(starts[voxel]);
        for (int64_t i = starts[voxel]; i < starts[voxel + 1]; ++i) {
          const int64_t row = sorted.row(i);
          inverse_data[row] = voxel;
          if (priority.is_before(row, chosen)) chosen = row;
        }
        index_data[voxel] = chosen;
      }
    });
  });
  return {coords, inverse, index};
}

std::tuple<Tensor, Tensor, Tensor> voxelize(const Tensor& xyz, const Tensor& offsets, const Tensor& origin,
                                            const std::optional<Tensor>& priority, double voxel_size) {
  const auto function = xyz.scalar_type() == ScalarType::Double ? voxelize_points<double> : voxelize_points<float>;
  return function(xyz, offsets, origin, Priority(priority), voxel_size);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&voxelize));
}
