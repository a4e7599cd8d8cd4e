// CPU kernel of geo3d::kernel_support. geo3d/ops/kernel_support.py tells what it computes and has checked the arguments.

#include "cell_sort.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace {

using geo3d::Cell;
using geo3d::CellRange;
using geo3d::RowChunks;
using torch::stable::Tensor;

Tensor kernel_support(const Tensor& coords, int64_t step, int64_t kernel_size) {
  const int32_t* data = static_cast<const int32_t*>(coords.const_data_ptr());
  const int64_t row_stride = coords.stride(0), axis_stride = coords.stride(1), rows = coords.size(0);
  const int64_t first = kernel_size % 2 == 1 ? -(kernel_size / 2) * step : 0;
  const int64_t last = first + (kernel_size - 1) * step;
  std::vector<Cell> offsets;
  for (int64_t z = first; z <= last; z += step) {
    for (int64_t y = first; y <= last; y += step) {
      for (int64_t x = first; x <= last; x += step) offsets.push_back({0, x, y, z});
    }
  }
  const int64_t taps = static_cast<int64_t>(offsets.size());

  CellRange range;
  for (int64_t row = 0; row < rows; ++row) {
    for (int axis = 0; axis < 4; ++axis) {
      const int64_t value = data[row * row_stride + axis * axis_stride];
      range.low[axis] = std::min(range.low[axis], value + (axis == 0 ? 0 : first));
      range.high[axis] = std::max(range.high[axis], value + (axis == 0 ? 0 : last));
    }
  }
  const auto make_cells = [&](int64_t begin, int64_t end, const auto& take) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* voxel = data + i / taps * row_stride;
      const Cell& offset = offsets[i % taps];
      Cell cell;
      for (int axis = 0; axis < 4; ++axis) cell[axis] = voxel[axis * axis_stride] + offset[axis];
      take(i, cell);
    }
  };
  Tensor support;
  geo3d::with_sorted_cells(RowChunks(rows * taps), range, make_cells, [&](const auto& sorted) {
    const int64_t count = static_cast<int64_t>(sorted.starts().size()) - 1;
    support = torch::stable::new_empty(coords, {count, 4});
    int32_t* const result = static_cast<int32_t*>(support.mutable_data_ptr());
    RowChunks(count).for_each([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Cell cell = sorted.cell(sorted.starts()[i]);
        std::copy(cell.begin(), cell.end(), result + 4 * i);
      }
    });
  });
  return support;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("kernel_support", TORCH_BOX(&kernel_support));
}
