// CPU kernel of geo3d::window_partition. geo3d/ops/window_partition.py tells what it computes and has checked the arguments.

#include "cell_sort.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

using geo3d::Cell;
using geo3d::CellRange;
using geo3d::RowChunks;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Window of a voxel. Rounding down to the stride first would give the same: floor((floor(c / t) + s) / w) is
// floor((c + s t) / (w t)). Numbers stay below 2^33, so the quotient in double is never rounded up to a whole number.
class WindowOf {
 public:
  WindowOf(int64_t stride, int64_t window, bool shift)
      : shift_(shift ? static_cast<double>(window / 2 * stride) : 0.0), width_(static_cast<double>(window * stride)) {}

  int64_t operator()(int64_t coordinate) const {
    const double quotient = (static_cast<double>(coordinate) + shift_) / width_;
    const int64_t whole = static_cast<int64_t>(quotient);
    return whole - (quotient < static_cast<double>(whole));
  }

 private:
  double shift_, width_;
};

std::tuple<Tensor, Tensor> window_partition(const Tensor& coords, int64_t stride, int64_t window, bool shift) {
  const int32_t* data = static_cast<const int32_t*>(coords.const_data_ptr());
  const int64_t row_stride = coords.stride(0), axis_stride = coords.stride(1);
  const RowChunks chunks(coords.size(0));
  std::vector<CellRange> ranges(chunks.count());
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    CellRange range;
    for (int64_t row = begin; row < end; ++row) {
      for (int axis = 0; axis < 4; ++axis) {
        const int64_t value = data[row * row_stride + axis * axis_stride];
        range.low[axis] = std::min(range.low[axis], value);
        range.high[axis] = std::max(range.high[axis], value);
      }
    }
    ranges[chunk] = range;
  });
  CellRange range;
  for (const CellRange& part : ranges) range.include(part);

  const WindowOf window_of(stride, window, shift);
  if (!range.is_empty()) {
    for (int axis = 1; axis < 4; ++axis) {  // a window never decreases as its coordinate rises
      range.low[axis] = window_of(range.low[axis]);
      range.high[axis] = window_of(range.high[axis]);
    }
  }
  const auto make_cells = [&](int64_t begin, int64_t end, const auto& take) {
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* voxel = data + row * row_stride;
      take(row, Cell{voxel[0], window_of(voxel[axis_stride]), window_of(voxel[2 * axis_stride]),
                     window_of(voxel[3 * axis_stride])});
    }
  };
  Tensor order = torch::stable::new_empty(coords, {chunks.rows()}, ScalarType::Long);
  Tensor offsets;
  geo3d::with_sorted_cells(chunks, range, make_cells, [&](const auto& sorted) {
    int64_t* const order_data = static_cast<int64_t*>(order.mutable_data_ptr());
    chunks.for_each([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) order_data[i] = sorted.row(i);
    });
    offsets = torch::stable::new_empty(coords, {static_cast<int64_t>(sorted.starts().size())}, ScalarType::Long);
    std::copy(sorted.starts().begin(), sorted.starts().end(), static_cast<int64_t*>(offsets.mutable_data_ptr()));
  });
  return {order, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("window_partition", TORCH_BOX(&window_partition));
}
