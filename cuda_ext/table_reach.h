// Which rows of the tables the voxels of a window reach, for the CPU kernels of voxel attention, and the products with them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "head_lanes.h"
#include "voxel_attention.h"

namespace geo3d {

// The axes of the signals, and where their rows begin in a table.
struct Axes {
  explicit Axes(const std::vector<int64_t>& lengths) : bins(lengths), first(lengths.size()) {
    for (size_t a = 0; a < bins.size(); ++a) {
      first[a] = rows;
      rows += bins[a];
    }
  }

  int64_t count() const { return static_cast<int64_t>(bins.size()); }

  std::vector<int64_t> bins, first;
  int64_t rows = 0;
};

// Which row of an axis belongs to a difference of signals. Float32 additions in the published order, with nothing that a
// compiler could contract: another rounding is another row. Monotone, so the ends of a range give the ends of its rows.
class Binning {
 public:
  explicit Binning(int64_t bins) : half_(0.5f * static_cast<float>(bins)), last_(static_cast<float>(bins - 1)) {}

  int32_t row(float own, float other) const {
    const float d = (own - other) + half_;
    return std::max(static_cast<int32_t>(d < last_ ? d : last_), 0);  // from -1 on, cut towards 0
  }

  WideRows rows(Wide own, Wide other) const {
    const Wide d = (own - other) + half_;
    const WideRows row = __builtin_convertvector(d < last_ ? d : Wide{} + last_, WideRows);
    return row > 0 ? row : WideRows{};
  }

 private:
  float half_, last_;
};

// What the voxels of a window look up as queries, or as keys.
//
// A voxel reaches those rows of an axis that belong to differences with signals of its window. It has a column for each
// of them. Voxels are sorted by their signal, axis by axis, and every block of four shares its first column's row, so
// that products with the table are products of matrices. Columns between the axes stay empty.
class Side {
 public:
  explicit Side(const Axes& axes) : axes_(axes) {}

  // Signals: (A, stride) with `count` voxels and copies of some of them behind.
  void sort(const float* signals, int64_t stride, int64_t count) {
    set_signals(signals, stride, count);
    member_.resize(axes_.count() * padded_);
    low_.resize(axes_.count() * blocks_);
    high_.resize(axes_.count() * blocks_);
    start_.resize(axes_.count());
    columns_ = 1;
    for (int64_t a = 0; a < axes_.count(); ++a) sort_axis(a);
  }

  // Voxels look up the rows of a table themselves, not products with it.
  void look_up_directly(const float* signals, int64_t stride, int64_t count) {
    set_signals(signals, stride, count);
    columns_ = 0;
    for (int64_t a = 0; a < axes_.count(); ++a) {
      std::fill_n(base_.begin() + a * padded_, padded_, static_cast<int32_t>(axes_.first[a]));
    }
  }

  int64_t columns() const { return columns_; }

  // What voxel i looks up for its pairs with voxels 0 to count - 1; layout as in for_each_pair.
  void find_offsets(int64_t i, int64_t count, int32_t* offsets) const {
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t size = std::min<int64_t>(kTile, count - first);
      for (int64_t a = 0; a < axes_.count(); ++a, offsets += kTile) {
        const Binning binning(axes_.bins[a]);
        const float* others = signals_ + a * stride_;
        const Wide own = Wide{} + others[i];
        const WideRows base = WideRows{} + base_[a * padded_ + i];
        for (int64_t j = 0; j < size; j += kWideFloats) {
          const Wide other = *reinterpret_cast<const Wide*>(others + first + j);
          *reinterpret_cast<WideRows*>(offsets + j) = (binning.rows(own, other) + base) * kLaneBytes;
        }
      }
    }
  }

  // Products of all voxels with the rows of a table that they reach, into their columns.
  void multiply_by_table(const Lanes* voxels, const Lanes* table, int64_t depth, Lanes* products) const {
    for_each_block([&](int64_t a, const int32_t* members, int64_t low, int64_t count) {
      Rows rows;
      Lanes* to[kBlock];
      for (int b = 0; b < kBlock; ++b) {
        rows.of[b] = voxels + members[b] * depth;
        to[b] = products + members[b] * columns_ + start_[a];
      }
      multiply(rows, table + (axes_.first[a] + low) * depth, count, depth,
               [&](int64_t r, int b, Lanes product) { to[b][r] = product; });
    });
  }

  // out[voxel] += the histogram in the voxel's columns times the table.
  void add_histograms_times_table(const Lanes* histograms, const Lanes* table, int64_t depth, Lanes* out) const {
    for_each_block([&](int64_t a, const int32_t* members, int64_t low, int64_t count) {
      Weights weights{{}, 1, 0, count, 1};
      Lanes* to[kBlock];
      for (int b = 0; b < kBlock; ++b) {
        weights.rows.of[b] = histograms + members[b] * columns_ + start_[a];
        to[b] = out + members[b] * depth;
      }
      add_weighted_rows(weights, table + (axes_.first[a] + low) * depth, depth, to);
    });
  }

  // table[row] += sum over voxels of their histogram's element for the row times themselves.
  void add_histograms_times_voxels(const Lanes* histograms, const Lanes* voxels, int64_t depth, Lanes* table) {
    weights_.resize(padded_);
    rows_.resize(padded_);
    for (int64_t a = 0; a < axes_.count(); ++a) {
      const int32_t* members = member_.data() + a * padded_;
      const int32_t* low = low_.data() + a * blocks_;
      const int32_t* high = high_.data() + a * blocks_;
      for (int64_t s = 0; s < padded_; ++s) {
        weights_[s] = histograms + members[s] * columns_ + base_[a * padded_ + members[s]];
        rows_[s] = voxels + members[s] * depth;
      }
      // The voxels that reach a row follow each other. Rows are taken in pairs; of a row next to its own a voxel has zero.
      int64_t first = 0, end = 0;
      for (int64_t row = low[0]; row <= high[blocks_ - 1]; row += 2) {
        while (first < blocks_ && high[first] < row) ++first;
        while (end < blocks_ && low[end] <= row + 1) ++end;
        if (first >= end) continue;
        add_outer_products(weights_.data() + first * kBlock, rows_.data() + first * kBlock, (end - first) * kBlock, row,
                           depth, table + (axes_.first[a] + row) * depth);
      }
    }
  }

 private:
  void set_signals(const float* signals, int64_t stride, int64_t count) {
    signals_ = signals;
    stride_ = stride;
    count_ = count;
    padded_ = whole_blocks(count, kBlock);
    blocks_ = padded_ / kBlock;
    base_.resize(axes_.count() * padded_);
  }

  void sort_axis(int64_t a) {
    const float* signals = signals_ + a * stride_;
    int32_t* members = member_.data() + a * padded_;
    const auto [least, greatest] = std::minmax_element(signals, signals + count_);
    sort_roughly(signals, *least, *greatest, members);
    // Signals of a block, widened so that the ends of later blocks' ranges are never lower than those of earlier ones.
    int32_t* low = low_.data() + a * blocks_;
    int32_t* high = high_.data() + a * blocks_;
    const Binning binning(axes_.bins[a]);
    float own = *least;
    int64_t widest = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      for (int64_t s = block * kBlock; s < std::min(count_, (block + 1) * kBlock); ++s) {
        own = std::max(own, signals[members[s]]);
      }
      high[block] = binning.row(own, *least);
    }
    for (int64_t block = blocks_ - 1; block >= 0; --block) {
      for (int64_t s = block * kBlock; s < std::min(count_, (block + 1) * kBlock); ++s) {
        own = std::min(own, signals[members[s]]);
      }
      low[block] = binning.row(own, *greatest);
      widest = std::max<int64_t>(widest, high[block] - low[block] + 1);
    }
    start_[a] = columns_;
    columns_ += widest + 1;
    for (int64_t s = 0; s < padded_; ++s) {
      base_[a * padded_ + members[s]] = static_cast<int32_t>(start_[a]) - low[s / kBlock];
    }
  }

  // Counting sort into buckets; the voxels behind the real ones stay last.
  void sort_roughly(const float* signals, float least, float greatest, int32_t* members) {
    constexpr int kBuckets = 64;
    int32_t ends[kBuckets] = {};
    const float width = greatest - least;
    const float scale = width > 0 ? (kBuckets - 1) / width : 0.0f;
    bucket_.resize(count_);
    for (int64_t i = 0; i < count_; ++i) {
      bucket_[i] = static_cast<uint8_t>(std::min<float>(kBuckets - 1, (signals[i] - least) * scale));
      ++ends[bucket_[i]];
    }
    std::partial_sum(ends, ends + kBuckets, ends);
    for (int64_t i = count_ - 1; i >= 0; --i) members[--ends[bucket_[i]]] = static_cast<int32_t>(i);
    for (int64_t i = count_; i < padded_; ++i) members[i] = static_cast<int32_t>(i);
  }

  template <class Visit>
  void for_each_block(const Visit& visit) const {
    for (int64_t a = 0; a < axes_.count(); ++a) {
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t low = low_[a * blocks_ + block], high = high_[a * blocks_ + block];
        visit(a, member_.data() + a * padded_ + block * kBlock, low, high - low + 1);
      }
    }
  }

  const Axes& axes_;
  const float* signals_ = nullptr;
  int64_t stride_ = 0, count_ = 0, padded_ = 0, blocks_ = 0, columns_ = 0;
  std::vector<int32_t> member_;     // (A, padded): voxels in the order of their signals
  std::vector<int32_t> low_, high_;  // (A, blocks): first and last row that a block reaches
  std::vector<int64_t> start_;      // (A): first column
  std::vector<int32_t> base_;       // (A, padded): column of a row, less the row
  std::vector<uint8_t> bucket_;
  std::vector<const Lanes*> weights_, rows_;
};

}  // namespace geo3d
