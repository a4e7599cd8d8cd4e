// CPU kernels of geo3d::kernel_map and geo3d::transpose_kernel_map. geo3d/ops/kernel_map.py tells what they compute and
// has checked the arguments.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

namespace {

using torch::stable::Tensor;

constexpr int64_t kOutputsPerTask = 2048;
constexpr int64_t kEdge = 4;  // of a brick, in cells
constexpr int kMaxSize = 15;  // of a kernel; geo3d/ops/kernel_map.py takes no larger one
constexpr int kMaxBricks = (kMaxSize + kEdge - 2) / kEdge + 1;  // that a kernel reaches along an axis

struct Voxel {
  int32_t batch, x, y, z;
};

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// A coordinate as the cell of `step` that it lies in and its place there, which offsets do not change.
struct Coordinate {
  int64_t cell, rest;

  Coordinate(int64_t value, int64_t step) : cell(floor_divide(value, step)), rest(value - cell * step) {}
};

// 4 x 4 x 4 cells, of which those that hold a voxel are set in the mask; their rows stand one after the other.
struct Brick {
  int64_t batch, x, y, z;
  uint64_t mask = 0;
  int64_t first = 0;

  bool is_at(int64_t b, int64_t i, int64_t j, int64_t k) const { return x == i && y == j && z == k && batch == b; }
};

// The input voxels in a hash table of bricks, so that a kernel's reach is searched for a few bricks and not for every cell.
class Bricks {
 public:
  Bricks(const Voxel* voxels, int64_t count, int64_t step) : step_(step), rows_(count) {
    int64_t size = 2;
    while (size < 2 * count) size *= 2;
    slots_.assign(size, -1);
    std::vector<int32_t> brick_of(count);
    std::vector<uint8_t> cell_of(count);
    for (int64_t row = 0; row < count; ++row) {
      const Voxel& voxel = voxels[row];
      const Coordinate x(voxel.x, step), y(voxel.y, step), z(voxel.z, step);
      brick_of[row] = insert(voxel.batch, place(x.cell, x.rest), place(y.cell, y.rest), place(z.cell, z.rest));
      cell_of[row] = static_cast<uint8_t>(cell(x.cell, y.cell, z.cell));
      uint64_t& mask = bricks_[brick_of[row]].mask;
      STD_TORCH_CHECK(!(mask >> cell_of[row] & 1), "kernel_map: in_coords has voxel (batch ", voxel.batch, ": ", voxel.x,
                      ", ", voxel.y, ", ", voxel.z, ") more than once; voxelize the points first");
      mask |= uint64_t{1} << cell_of[row];
    }
    int64_t first = 0;
    for (Brick& brick : bricks_) {
      brick.first = first;
      first += __builtin_popcountll(brick.mask);
    }
    for (int64_t row = 0; row < count; ++row) {
      rows_[rank(bricks_[brick_of[row]], cell_of[row])] = static_cast<int32_t>(row);
    }
  }

  // Coordinate of the brick of a cell; differs where the rest differs, as such voxels never meet.
  int64_t place(int64_t cell, int64_t rest) const { return floor_divide(cell, kEdge) * step_ + rest; }

  static int cell(int64_t x, int64_t y, int64_t z) { return static_cast<int>((z & 3) << 4 | (y & 3) << 2 | (x & 3)); }

  const Brick* find(int64_t batch, int64_t x, int64_t y, int64_t z) const {
    const int32_t brick = slots_[slot_of(batch, x, y, z)];
    return brick < 0 ? nullptr : &bricks_[brick];
  }

  // Row of the voxel in a cell of a brick, or -1.
  int32_t row(const Brick& brick, int cell) const { return brick.mask >> cell & 1 ? rows_[rank(brick, cell)] : -1; }

 private:
  static int64_t rank(const Brick& brick, int cell) {
    return brick.first + __builtin_popcountll(brick.mask & ((uint64_t{1} << cell) - 1));
  }

  // Where the brick is, or where it would be put.
  uint64_t slot_of(int64_t batch, int64_t x, int64_t y, int64_t z) const {
    constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;
    uint64_t hash = static_cast<uint64_t>(batch);
    for (const int64_t value : {x, y, z}) {
      hash = (hash ^ static_cast<uint64_t>(value)) * kFactor;
      hash ^= hash >> 32;
    }
    const uint64_t wrap = slots_.size() - 1;
    uint64_t slot = hash & wrap;
    while (slots_[slot] >= 0 && !bricks_[slots_[slot]].is_at(batch, x, y, z)) slot = (slot + 1) & wrap;
    return slot;
  }

  int32_t insert(int64_t batch, int64_t x, int64_t y, int64_t z) {
    int32_t& brick = slots_[slot_of(batch, x, y, z)];
    if (brick < 0) {
      brick = static_cast<int32_t>(bricks_.size());
      bricks_.push_back({batch, x, y, z});
    }
    return brick;
  }

  int64_t step_;
  std::vector<int32_t> slots_;  // bricks by their hash, -1 where there is none
  std::vector<Brick> bricks_;
  std::vector<int32_t> rows_;
};

// The part of one axis that a kernel reaches: bricks, and for each offset which of them and the cell.
struct Reach {
  int bricks = 0;
  std::array<int64_t, kMaxBricks> places;
  std::array<int8_t, kMaxSize> brick_of;
  std::array<int64_t, kMaxSize> cells;

  Reach(const Bricks& all, int64_t value, int64_t step, int64_t first_offset, int size) {
    const Coordinate at(value, step);
    for (int i = 0; i < size; ++i) {
      cells[i] = at.cell + first_offset + i;
      if (i == 0 || (cells[i] & (kEdge - 1)) == 0) places[bricks++] = all.place(cells[i], at.rest);
      brick_of[i] = static_cast<int8_t>(bricks - 1);
    }
  }
};

// Rows of the inputs around one output, written `stride` apart.
void find_neighbours(const Bricks& bricks, const Voxel& voxel, int64_t step, int64_t first_offset, int size,
                     int32_t* out, int64_t stride) {
  const Reach x(bricks, voxel.x, step, first_offset, size), y(bricks, voxel.y, step, first_offset, size),
      z(bricks, voxel.z, step, first_offset, size);
  const Brick* found[kMaxBricks][kMaxBricks][kMaxBricks];
  for (int k = 0; k < z.bricks; ++k) {
    for (int j = 0; j < y.bricks; ++j) {
      for (int i = 0; i < x.bricks; ++i) found[k][j][i] = bricks.find(voxel.batch, x.places[i], y.places[j], z.places[k]);
    }
  }
  for (int k = 0; k < size; ++k) {
    for (int j = 0; j < size; ++j) {
      for (int i = 0; i < size; ++i) {
        const Brick* brick = found[z.brick_of[k]][y.brick_of[j]][x.brick_of[i]];
        *out = brick == nullptr ? -1 : bricks.row(*brick, Bricks::cell(x.cells[i], y.cells[j], z.cells[k]));
        out += stride;
      }
    }
  }
}

Tensor kernel_map(const Tensor& in_coords, const Tensor& out_coords, int64_t step, int64_t kernel_size) {
  const Tensor inputs = torch::stable::contiguous(in_coords), outputs = torch::stable::contiguous(out_coords);
  const int64_t count = outputs.size(0);
  Tensor result = torch::stable::new_empty(out_coords, {kernel_size * kernel_size * kernel_size, count});
  const Bricks bricks(static_cast<const Voxel*>(inputs.const_data_ptr()), inputs.size(0), step);
  const Voxel* voxels = static_cast<const Voxel*>(outputs.const_data_ptr());
  int32_t* rows = static_cast<int32_t*>(result.mutable_data_ptr());
  const int64_t first_offset = kernel_size % 2 == 1 ? -(kernel_size / 2) : 0;
  torch::stable::parallel_for(0, count, kOutputsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      find_neighbours(bricks, voxels[m], step, first_offset, static_cast<int>(kernel_size), rows + m, count);
    }
  });
  return result;
}

Tensor transpose_kernel_map(const Tensor& neighbours, int64_t count) {
  const Tensor map = torch::stable::contiguous(neighbours);
  const int64_t offsets = map.size(0), outputs = map.size(1);
  Tensor result = torch::stable::new_empty(neighbours, {offsets, count});
  const int32_t* from = static_cast<const int32_t*>(map.const_data_ptr());
  int32_t* to = static_cast<int32_t*>(result.mutable_data_ptr());
  std::atomic<bool> twice{false};
  torch::stable::parallel_for(0, offsets, 1, [&](int64_t begin, int64_t end) {
    std::fill(to + begin * count, to + end * count, -1);
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t m = 0; m < outputs; ++m) {
        const int32_t input = from[k * outputs + m];
        if (input < 0) continue;
        int32_t& output = to[k * count + input];
        if (output >= 0) twice = true;
        output = static_cast<int32_t>(m);
      }
    }
  });
  STD_TORCH_CHECK(!twice, "transpose_kernel_map: an input occurs twice for the same offset; out_coords must not have duplicates");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("kernel_map", TORCH_BOX(&kernel_map));
  m.impl("transpose_kernel_map", TORCH_BOX(&transpose_kernel_map));
}
