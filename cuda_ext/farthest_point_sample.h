// The rules of farthest point sampling that CPU and CUDA sources share.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GEO3D_BOTH __host__ __device__
#else
#define GEO3D_BOTH
#endif

namespace geo3d {

constexpr float kFarthestStart = 1e10f;       // squared distance before there is a sample
constexpr double kNearOrigin = 1e-3;          // square of the radius in which points are passed over where that is asked for
constexpr int64_t kFarthestLargest = 1 << 30;  // points of a cloud: ranks have 31 bits

// Which of equally far points is taken: the one of the lowest rank. That is its row, or, as the published kernel's block of
// `threads` threads does by its reduction: the smallest bit-reversed row modulo threads first, then the smallest row.
class FarthestOrder {
 public:
  GEO3D_BOTH FarthestOrder(int64_t points, bool published) : published_(published) {
    while (bits_ < 9 && int64_t{2} << bits_ <= points) ++bits_;
    each_ = static_cast<int32_t>((points + (int64_t{1} << bits_) - 1) >> bits_);
  }

  GEO3D_BOTH int32_t rank(int32_t row) const {
    return published_ ? reversed(row & ((1 << bits_) - 1)) * each_ + (row >> bits_) : row;
  }

  GEO3D_BOTH int32_t row(int32_t rank) const {
    return published_ ? (rank % each_ << bits_) + reversed(rank / each_) : rank;
  }

 private:
  GEO3D_BOTH int32_t reversed(int32_t thread) const {
    uint32_t bits = static_cast<uint32_t>(thread);  // 16 of them are turned round, of which bits_ are left
    bits = (bits & 0x5555) << 1 | (bits >> 1 & 0x5555);
    bits = (bits & 0x3333) << 2 | (bits >> 2 & 0x3333);
    bits = (bits & 0x0F0F) << 4 | (bits >> 4 & 0x0F0F);
    bits = (bits & 0x00FF) << 8 | bits >> 8;
    return static_cast<int32_t>(bits >> (16 - bits_));
  }

  bool published_;
  int bits_ = 0;      // of a thread's number
  int32_t each_ = 0;  // points of a thread, at most
};

}  // namespace geo3d
