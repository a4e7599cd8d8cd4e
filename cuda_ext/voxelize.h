// What the CPU and the CUDA kernel of voxelize refuse.

#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace geo3d {

constexpr double kMaxCoordinate = 1 << 20;

// Rows of points that have no cell: how many and the first one, of those that are not finite and of those out of reach.
struct BadPoints {
  int64_t not_finite = 0, first_not_finite = -1, too_far = 0, first_too_far = -1;
};

inline void check_points(const BadPoints& bad, int64_t count) {
  STD_TORCH_CHECK(bad.not_finite == 0, "voxelize: ", bad.not_finite, " of ", count,
                  " points are not finite, the first in row ", bad.first_not_finite, "; remove them first");
  STD_TORCH_CHECK(bad.too_far == 0, "voxelize: ", bad.too_far, " of ", count, " points lie over ",
                  static_cast<int64_t>(kMaxCoordinate), " voxels from the origin, the first in row ",
                  bad.first_too_far, "; choose a larger voxel_size or an origin nearer to the points");
}

}  // namespace geo3d
