// Stable sort of lattice cells [batch, x, y, z], shared by the CPU kernels of kernel_support, voxelize and window_partition.
//
// A cell becomes a key: its four numbers less their minima, packed into as many bits as their ranges need. Key and row fit in
// 64 bits for nearly every cloud (a room at 2 cm needs some 28 bits, a million rows 20); where not, 128-bit keys hold
// any four 32-bit numbers. A radix sort puts the records in order. A stable order is unique, so the result does not depend on
// the number of threads.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace geo3d {

using Cell = std::array<int64_t, 4>;  // batch, x, y, z

struct CellRange {
  Cell low, high;

  CellRange() {  // of no cells
    low.fill(std::numeric_limits<int64_t>::max());
    high.fill(std::numeric_limits<int64_t>::min());
  }

  bool is_empty() const { return low[0] > high[0]; }

  void include(const CellRange& other) {
    for (int axis = 0; axis < 4; ++axis) {
      low[axis] = std::min(low[axis], other.low[axis]);
      high[axis] = std::max(high[axis], other.high[axis]);
    }
  }
};

// Rows in contiguous parts: one a thread, or fewer where there are few rows.
class RowChunks {
 public:
  explicit RowChunks(int64_t rows)
      : rows_(rows),
        count_(std::clamp<int64_t>(rows / kRowsPerChunk, 1, static_cast<int64_t>(torch::stable::get_num_threads()))) {}

  int64_t rows() const { return rows_; }
  int64_t count() const { return count_; }
  int64_t begin(int64_t chunk) const { return rows_ * chunk / count_; }

  // Calls work(chunk, begin, end) for all chunks, in parallel.
  template <typename Work>
  void for_each(const Work& work) const {
    torch::stable::parallel_for(0, count_, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        work(chunk, begin(chunk), begin(chunk + 1));
      }
    });
  }

 private:
  static constexpr int64_t kRowsPerChunk = 8192;
  int64_t rows_, count_;
};

inline int bit_length(uint64_t value) {
  int bits = 0;
  for (; value != 0; value >>= 1) ++bits;
  return bits;
}

// Where the bits of each of a cell's numbers lie in its key.
class KeyLayout {
 public:
  explicit KeyLayout(const CellRange& range) : low_(range.low) {
    for (int axis = 3; axis >= 0; --axis) {
      shift_[axis] = bits_;
      width_[axis] = range.is_empty() ? 0 : bit_length(static_cast<uint64_t>(range.high[axis] - range.low[axis]));
      bits_ += width_[axis];
    }
  }

  int bits() const { return bits_; }

  template <typename Key>
  Key key(const Cell& cell) const {
    Key key = 0;
    for (int axis = 0; axis < 4; ++axis) {
      key |= static_cast<Key>(static_cast<uint64_t>(cell[axis] - low_[axis])) << shift_[axis];
    }
    return key;
  }

  template <typename Key>
  Cell cell(Key key) const {
    Cell cell;
    for (int axis = 3; axis >= 0; --axis) {
      const uint64_t part = static_cast<uint64_t>(key) & ((uint64_t{1} << width_[axis]) - 1);
      cell[axis] = low_[axis] + static_cast<int64_t>(part);
      key >>= width_[axis];
    }
    return cell;
  }

 private:
  Cell low_;
  std::array<int, 4> shift_, width_;
  int bits_ = 0;
};

// Key and row in one word.
class NarrowRecords {
 public:
  using Key = uint64_t;
  using Record = uint64_t;

  NarrowRecords(int row_bits) : row_bits_(row_bits) {}

  Record make(Key key, int64_t row) const { return key << row_bits_ | static_cast<uint64_t>(row); }
  Key key(Record record) const { return record >> row_bits_; }
  int64_t row(Record record) const { return static_cast<int64_t>(record & ((uint64_t{1} << row_bits_) - 1)); }

 private:
  int row_bits_;
};

class WideRecords {
 public:
  using Key = unsigned __int128;
  struct Record {
    Key key;
    int64_t row;
  };

  Record make(Key key, int64_t row) const { return {key, row}; }
  Key key(const Record& record) const { return record.key; }
  int64_t row(const Record& record) const { return record.row; }
};

constexpr int kMaxDigitBits = 11;

// One pass of the radix sort: `from` to `to`, stably by one digit of the key.
template <typename Records>
void distribute(const Records& records, const RowChunks& chunks, int shift, int digit_bits,
                const typename Records::Record* from, typename Records::Record* to, std::vector<int64_t>& places) {
  const int64_t buckets = int64_t{1} << digit_bits;
  const auto digit = [&](const typename Records::Record& record) {
    return static_cast<int64_t>(records.key(record) >> shift) & (buckets - 1);
  };
  std::fill(places.begin(), places.end(), 0);
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t* counts = places.data() + (chunk << kMaxDigitBits);
    for (int64_t i = begin; i < end; ++i) ++counts[digit(from[i])];
  });
  int64_t place = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      place += std::exchange(places[(chunk << kMaxDigitBits) + bucket], place);
    }
  }
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t* next = places.data() + (chunk << kMaxDigitBits);
    for (int64_t i = begin; i < end; ++i) to[next[digit(from[i])]++] = from[i];
  });
}

// Rows in the order of their cells, equal cells in the order of their rows.
template <typename Records>
class SortedCells {
 public:
  // make_cells(begin, end, take) calls take(row, cell) for these rows in turn, with cells inside of the layout's range.
  template <typename MakeCells>
  SortedCells(const Records& records, const KeyLayout& layout, const RowChunks& chunks, const MakeCells& make_cells)
      : records_(records), layout_(layout), sorted_(new Record[chunks.rows()]) {
    std::vector<char> ascends(chunks.count(), true);
    chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      bool ascending = true;
      Key before = 0;
      make_cells(begin, end, [&](int64_t row, const Cell& cell) {
        const Key key = layout_.key<Key>(cell);
        sorted_[row] = records_.make(key, row);
        ascending = ascending && before <= key;
        before = key;
      });
      ascends[chunk] = ascending;
    });
    bool is_sorted = std::all_of(ascends.begin(), ascends.end(), [](char yes) { return yes; });
    for (int64_t chunk = 1; is_sorted && chunk < chunks.count(); ++chunk) {
      const int64_t begin = chunks.begin(chunk);
      is_sorted = records_.key(sorted_[begin - 1]) <= records_.key(sorted_[begin]);
    }
    if (!is_sorted) sort(chunks);
    find_groups(chunks);
  }

  int64_t row(int64_t i) const { return records_.row(sorted_[i]); }
  Cell cell(int64_t i) const { return layout_.cell(records_.key(sorted_[i])); }

  // Where groups of equal cells begin, and the number of rows at the end.
  const std::vector<int64_t>& starts() const { return starts_; }

 private:
  using Record = typename Records::Record;
  using Key = typename Records::Key;

  void sort(const RowChunks& chunks) {
    // Unlike a vector's, the elements of these arrays are not set to zero first.
    std::unique_ptr<Record[]> other(new Record[chunks.rows()]);
    std::vector<int64_t> places(chunks.count() << kMaxDigitBits);
    const int passes = (layout_.bits() + kMaxDigitBits - 1) / kMaxDigitBits;
    for (int pass = 0; pass < passes; ++pass) {
      const int begin = layout_.bits() * pass / passes, end = layout_.bits() * (pass + 1) / passes;
      distribute(records_, chunks, begin, end - begin, sorted_.get(), other.get(), places);
      sorted_.swap(other);
    }
  }

  bool begins_group(int64_t i) const {
    return i == 0 || records_.key(sorted_[i]) != records_.key(sorted_[i - 1]);
  }

  void find_groups(const RowChunks& chunks) {
    std::vector<int64_t> first_group(chunks.count() + 1, 0);
    chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      int64_t groups = 0;
      for (int64_t i = begin; i < end; ++i) groups += begins_group(i);
      first_group[chunk + 1] = groups;
    });
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) first_group[chunk + 1] += first_group[chunk];
    starts_.resize(first_group.back() + 1);
    chunks.for_each([&](int64_t chunk, int64_t begin, int64_t) {
      int64_t group = first_group[chunk];
      for (int64_t i = begin; group < first_group[chunk + 1]; ++i) {
        starts_[group] = i;  // without a branch: stays where a group begins, and is written over where none does
        group += begins_group(i);
      }
    });
    starts_.back() = chunks.rows();
  }

  Records records_;
  KeyLayout layout_;
  std::unique_ptr<Record[]> sorted_;
  std::vector<int64_t> starts_;
};

// Sorts rows by their cells, which lie inside of `range`, and hands the SortedCells to `use`.
template <typename MakeCells, typename Use>
void with_sorted_cells(const RowChunks& chunks, const CellRange& range, const MakeCells& make_cells, const Use& use) {
  const KeyLayout layout(range);
  const int row_bits = bit_length(static_cast<uint64_t>(chunks.rows()));
  if (layout.bits() + row_bits < 64) {
    use(SortedCells<NarrowRecords>(NarrowRecords(row_bits), layout, chunks, make_cells));
  } else {
    use(SortedCells<WideRecords>(WideRecords(), layout, chunks, make_cells));
  }
}

}  // namespace geo3d
