// Which rows of the tables the voxels of a window reach, for the CPU kernels of voxel attention, and the products with them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "head_lanes.h"
#include "voxel_attention.h"

namespace geo3d {

// Voxels in a chunk: so few that their columns and pairs stay in the second level of cache, and enough that there are
// blocks of similar signals among them (with whole windows blocks reach 4 % fewer rows).
constexpr int64_t kChunk = 32;

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
// A voxel reaches those rows of an axis that belong to differences with signals of its window. Voxels are taken in chunks.
// A voxel of the chunk has a column for each row that it reaches; the columns of one voxel follow those of the other. The
// chunk's voxels are sorted by their signal, axis by axis, and a block of four has columns for the same rows, so that
// products with the table are products of matrices.
class Side {
 public:
  explicit Side(const Axes& axes)
      : axes_(axes), least_(axes.count()), greatest_(axes.count()), member_(axes.count() * kChunk),
        low_(axes.count() * kChunk / kBlock), high_(low_.size()), begin_(member_.size()), base_(member_.size()) {}

  // Signals of a window: (A, stride) with `count` voxels and copies of some of them behind.
  void enter(const float* signals, int64_t stride, int64_t count) {
    signals_ = signals;
    stride_ = stride;
    for (int64_t a = 0; a < axes_.count(); ++a) find_range(signals + a * stride, count, least_[a], greatest_[a]);
  }

  // The chunk of `count` voxels from `first` on is what the functions below are about.
  void choose(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    blocks_ = whole_blocks(count, kBlock) / kBlock;
    std::fill_n(first_column_, blocks_ * kBlock + 1, 0);
    for (int64_t a = 0; a < axes_.count(); ++a) sort_axis(a);
    for (int64_t i = 0, columns = 0; i <= blocks_ * kBlock; ++i) columns += std::exchange(first_column_[i], columns);
  }

  // Where the columns of the chunk's voxel i begin, and after the last voxel, end; voxels are counted from the chunk's first.
  int64_t first_column(int64_t i) const { return first_column_[i]; }
  int64_t columns_of(int64_t i) const { return first_column_[i + 1] - first_column_[i]; }
  int64_t columns() const { return first_column_[blocks_ * kBlock]; }

  // What the chunk's voxel i looks up in its columns, each of so many bytes, for its pairs with voxels 0 to count - 1 of the
  // window; layout as in for_each_pair.
  template <int kBytes>
  void find_offsets(int64_t i, int64_t count, int32_t* offsets) const {
    fill_offsets<kBytes>(first_ + i, count, [&](int64_t a) { return base_[a * kChunk + i]; }, offsets);
  }

  // The same for the window's voxel i, which looks up the rows of a table themselves, not products with it.
  void find_rows(int64_t i, int64_t count, int32_t* offsets) const {
    fill_offsets<sizeof(Lanes)>(i, count, [&](int64_t a) { return static_cast<int32_t>(axes_.first[a]); }, offsets);
  }

  // Products of the chunk's voxels with the rows of a table that they reach, into every step-th of their columns.
  void multiply_by_table(const Lanes* voxels, const Lanes* table, int64_t depth, Lanes* products, int64_t step) const {
    for_each_block([&](int64_t a, const int32_t* members, int64_t low, int64_t count) {
      Lanes* to[kBlock];
      for (int b = 0; b < kBlock; ++b) to[b] = products + column(a, members[b]) * step;
      multiply(rows_of(members, voxels, depth), table + (axes_.first[a] + low) * depth, count, depth,
               [&](int64_t r, int b, Lanes product) { to[b][r * step] = product; });
    });
  }

  // Histograms in columns of the chunk's voxels, and what they are multiplied by: where there is a table, out[voxel] += the
  // histogram times the table; where there are sums, table_sums[row] += over voxels, their histogram's element for the row
  // times themselves.
  struct Histograms {
    const Lanes* columns;
    int64_t step;
    const Lanes* table;
    Lanes* out;
    const Lanes* voxels;
    Lanes* table_sums;
  };

  // Products with histograms, all of a block while they are in the first level of cache.
  template <size_t kCount>
  void add_products(const Histograms (&all)[kCount], int64_t depth) const {
    for_each_block([&](int64_t a, const int32_t* members, int64_t low, int64_t count) {
      const int64_t row = (axes_.first[a] + low) * depth;
      for (const Histograms& histograms : all) {
        Rows weights;
        for (int b = 0; b < kBlock; ++b) weights.of[b] = histograms.columns + column(a, members[b]) * histograms.step;
        if (histograms.table != nullptr) {
          Lanes* to[kBlock];
          for (int b = 0; b < kBlock; ++b) to[b] = histograms.out + (first_ + members[b]) * depth;
          add_weighted_rows({weights, 1, 0, count, histograms.step}, histograms.table + row, depth, to);
        }
        if (histograms.table_sums != nullptr) {
          add_outer_products(weights, histograms.step, rows_of(members, histograms.voxels, depth), count, depth,
                             histograms.table_sums + row);
        }
      }
    });
  }

 private:
  template <int kBytes, class Base>
  void fill_offsets(int64_t voxel, int64_t count, const Base& base_of, int32_t* offsets) const {
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t size = std::min<int64_t>(kTile, count - first);
      for (int64_t a = 0; a < axes_.count(); ++a, offsets += kTile) {
        const Binning binning(axes_.bins[a]);
        const float* others = signals_ + a * stride_;
        const Wide own = Wide{} + others[voxel];
        const WideRows base = WideRows{} + base_of(a);
        for (int64_t j = 0; j < size; j += kWideFloats) {
          const Wide other = *reinterpret_cast<const Wide*>(others + first + j);
          *reinterpret_cast<WideRows*>(offsets + j) = (binning.rows(own, other) + base) * kBytes;
        }
      }
    }
  }

  void sort_axis(int64_t a) {
    const float* signals = signals_ + a * stride_ + first_;
    int32_t* members = member_.data() + a * kChunk;
    sort_roughly(signals, members);
    const Binning binning(axes_.bins[a]);
    for (int64_t block = 0; block < blocks_; ++block, members += kBlock) {
      float least = signals[members[0]], greatest = least;
      for (int64_t b = 1; b < std::min<int64_t>(kBlock, count_ - block * kBlock); ++b) {
        least = std::min(least, signals[members[b]]);
        greatest = std::max(greatest, signals[members[b]]);
      }
      const int32_t low = binning.row(least, greatest_[a]), high = binning.row(greatest, least_[a]);
      low_[a * kChunk / kBlock + block] = low;
      high_[a * kChunk / kBlock + block] = high;
      for (int b = 0; b < kBlock; ++b) {
        const int64_t i = members[b], at = a * kChunk + i;
        begin_[at] = static_cast<int32_t>(first_column_[i]);
        base_[at] = begin_[at] - low;
        first_column_[i] += high - low + 1;
      }
    }
  }

  static void find_range(const float* signals, int64_t count, float& least, float& greatest) {
    least = greatest = signals[0];
    for (int64_t i = 1; i < count; ++i) {
      least = std::min(least, signals[i]);
      greatest = std::max(greatest, signals[i]);
    }
  }

  // Counting sort into buckets; the voxels behind the real ones stay last.
  void sort_roughly(const float* signals, int32_t* members) const {
    constexpr int kBuckets = 32;
    int32_t ends[kBuckets] = {};
    uint8_t buckets[kChunk];
    float least, greatest;
    find_range(signals, count_, least, greatest);
    const float width = greatest - least, scale = width > 0 ? (kBuckets - 1) / width : 0.0f;
    for (int64_t i = 0; i < count_; ++i) {
      buckets[i] = static_cast<uint8_t>(std::min<float>(kBuckets - 1, (signals[i] - least) * scale));
    }
    for (int64_t i = 0; i < count_; ++i) ++ends[buckets[i]];
    std::partial_sum(ends, ends + kBuckets, ends);
    for (int64_t i = count_ - 1; i >= 0; --i) members[--ends[buckets[i]]] = static_cast<int32_t>(i);
    for (int64_t i = count_; i < blocks_ * kBlock; ++i) members[i] = static_cast<int32_t>(i);
  }

  Rows rows_of(const int32_t* members, const Lanes* voxels, int64_t depth) const {
    Rows rows;
    for (int b = 0; b < kBlock; ++b) rows.of[b] = voxels + (first_ + members[b]) * depth;
    return rows;
  }

  // First column of a voxel's axis.
  int64_t column(int64_t a, int64_t i) const { return first_column_[i] + begin_[a * kChunk + i]; }

  template <class Visit>
  void for_each_block(const Visit& visit) const {
    for (int64_t a = 0; a < axes_.count(); ++a) {
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = a * kChunk / kBlock + block;
        visit(a, member_.data() + a * kChunk + block * kBlock, low_[at], high_[at] - low_[at] + 1);
      }
    }
  }

  const Axes& axes_;
  const float* signals_ = nullptr;
  int64_t stride_ = 0, first_ = 0, count_ = 0, blocks_ = 0;
  std::vector<float> least_, greatest_;  // (A): of the window
  std::vector<int32_t> member_;          // (A, chunk): voxels in the order of their signals
  std::vector<int32_t> low_, high_;      // (A, chunk / 4): first and last row that a block reaches
  std::vector<int32_t> begin_;           // (A, chunk): first column of a voxel's axis, counted from the voxel's first
  std::vector<int32_t> base_;            // (A, chunk): column of a row, counted likewise, less the row
  int64_t first_column_[kChunk + 1] = {};  // of a voxel; while axes are sorted, how many it has so far
};

}  // namespace geo3d
