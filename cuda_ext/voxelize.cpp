// CPU kernel of geo3d::voxelize. geo3d/ops/voxelize.py tells what it computes and has checked the arguments.

#include "cell_sort.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using geo3d::Cell;
using geo3d::CellRange;
using geo3d::RowChunks;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kMaxCoordinate = 1 << 20;
constexpr int64_t kVoxelsPerTask = 8192;

// Points that have no cell.
struct Refused {
  int64_t not_finite = 0, first_not_finite = -1, too_far = 0, first_too_far = -1;

  void add(bool finite, int64_t row) {
    int64_t& count = finite ? too_far : not_finite;
    int64_t& first = finite ? first_too_far : first_not_finite;
    if (count++ == 0) first = row;
  }

  void add(const Refused& later) {
    if (not_finite == 0) first_not_finite = later.first_not_finite;
    if (too_far == 0) first_too_far = later.first_too_far;
    not_finite += later.not_finite;
    too_far += later.too_far;
  }

  void raise_if_any(int64_t points) const {
    STD_TORCH_CHECK(not_finite == 0, "voxelize: ", not_finite, " of ", points, " points are not finite, the first in row ",
                    first_not_finite, "; remove them first");
    STD_TORCH_CHECK(too_far == 0, "voxelize: ", too_far, " of ", points, " points lie over ",
                    static_cast<int64_t>(kMaxCoordinate), " voxels from the origin, the first in row ", first_too_far,
                    "; choose a larger voxel_size or an origin nearer to the points");
  }
};

// The cells of all points, and their range.
struct PointCells {
  std::unique_ptr<int32_t[]> xyz;  // (N, 3)
  std::unique_ptr<int32_t[]> scene;  // (N,)
  CellRange range;
};

std::vector<double> read_origins(const Tensor& origin) {
  std::vector<double> values;
  values.reserve(origin.numel());
  const bool is_double = origin.scalar_type() == ScalarType::Double;
  for (int64_t scene = 0; scene < origin.size(0); ++scene) {
    for (int64_t axis = 0; axis < 3; ++axis) {
      const int64_t place = scene * origin.stride(0) + axis * origin.stride(1);
      values.push_back(is_double ? static_cast<const double*>(origin.const_data_ptr())[place]
                                 : static_cast<const float*>(origin.const_data_ptr())[place]);
    }
  }
  return values;
}

template <typename Scalar>
PointCells find_cells(const Tensor& xyz, const Tensor& offsets, const Tensor& origin, double voxel_size,
                      const RowChunks& chunks) {
  const Scalar* points = static_cast<const Scalar*>(xyz.const_data_ptr());
  const int64_t point_stride = xyz.stride(0), axis_stride = xyz.stride(1);
  std::vector<int64_t> scene_begin(offsets.numel());
  for (size_t i = 0; i < scene_begin.size(); ++i) {
    scene_begin[i] = static_cast<const int64_t*>(offsets.const_data_ptr())[i * offsets.stride(0)];
  }
  const std::vector<double> origins = read_origins(origin);
  PointCells cells{std::unique_ptr<int32_t[]>(new int32_t[3 * chunks.rows()]),
                   std::unique_ptr<int32_t[]>(new int32_t[chunks.rows()]), CellRange()};
  std::vector<CellRange> ranges(chunks.count());
  std::vector<Refused> refusals(chunks.count());
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    CellRange range;
    Refused refused;
    int64_t scene = std::upper_bound(scene_begin.begin(), scene_begin.end(), begin) - scene_begin.begin() - 1;
    for (int64_t row = begin; row < end; ++row) {
      while (row >= scene_begin[scene + 1]) ++scene;
      range.low[0] = std::min(range.low[0], scene);
      range.high[0] = std::max(range.high[0], scene);
      cells.scene[row] = static_cast<int32_t>(scene);
      bool inside = true, finite = true;
      for (int axis = 0; axis < 3; ++axis) {
        const double value = static_cast<double>(points[row * point_stride + axis * axis_stride]);
        const double place = (value - origins[3 * scene + axis]) / voxel_size;
        if (!(place >= -kMaxCoordinate && place < kMaxCoordinate + 1)) {
          inside = false;
          finite = finite && std::isfinite(value);
          continue;
        }
        const int32_t toward_zero = static_cast<int32_t>(place);
        const int32_t cell = toward_zero - (place < toward_zero);
        cells.xyz[3 * row + axis] = cell;
        range.low[axis + 1] = std::min<int64_t>(range.low[axis + 1], cell);
        range.high[axis + 1] = std::max<int64_t>(range.high[axis + 1], cell);
      }
      if (!inside) refused.add(finite, row);
    }
    ranges[chunk] = range;
    refusals[chunk] = refused;
  });
  Refused refused;
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    cells.range.include(ranges[chunk]);
    refused.add(refusals[chunk]);
  }
  refused.raise_if_any(chunks.rows());
  return cells;
}

std::tuple<Tensor, Tensor, Tensor> voxelize(const Tensor& xyz, const Tensor& offsets, const Tensor& origin,
                                            const std::optional<Tensor>& priority, double voxel_size) {
  const RowChunks chunks(xyz.size(0));
  const auto find = xyz.scalar_type() == ScalarType::Double ? find_cells<double> : find_cells<float>;
  const PointCells cells = find(xyz, offsets, origin, voxel_size, chunks);
  const auto cell_of_row = [&](int64_t row) {
    const int32_t* cell = cells.xyz.get() + 3 * row;
    return Cell{cells.scene[row], cell[0], cell[1], cell[2]};
  };
  const std::unique_ptr<int64_t[]> order(new int64_t[chunks.rows()]);
  const std::vector<int64_t> starts = geo3d::sort_cells(chunks, cells.range, cell_of_row, order.get());

  const int64_t count = static_cast<int64_t>(starts.size()) - 1;
  Tensor coords = torch::stable::new_empty(xyz, {count, 4}, ScalarType::Int);
  Tensor inverse = torch::stable::new_empty(xyz, {chunks.rows()}, ScalarType::Long);
  Tensor index = torch::stable::new_empty(xyz, {count}, ScalarType::Long);
  int32_t* const coords_data = static_cast<int32_t*>(coords.mutable_data_ptr());
  int64_t* const inverse_data = static_cast<int64_t*>(inverse.mutable_data_ptr());
  int64_t* const index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  const int64_t* priorities = priority ? static_cast<const int64_t*>(priority->const_data_ptr()) : nullptr;
  const int64_t priority_stride = priority ? priority->stride(0) : 0;
  torch::stable::parallel_for(0, count, kVoxelsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t voxel = begin; voxel < end; ++voxel) {
      int64_t chosen = order[starts[voxel]];
      const Cell cell = cell_of_row(chosen);
      for (int axis = 0; axis < 4; ++axis) coords_data[4 * voxel + axis] = static_cast<int32_t>(cell[axis]);
      for (int64_t i = starts[voxel]; i < starts[voxel + 1]; ++i) {
        const int64_t row = order[i];
        inverse_data[row] = voxel;
        if (priorities != nullptr && priorities[row * priority_stride] < priorities[chosen * priority_stride]) {
          chosen = row;
        }
      }
      index_data[voxel] = chosen;
    }
  });
  return {coords, inverse, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&voxelize));
}
