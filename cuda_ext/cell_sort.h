// Stable sort of lattice cells [batch, x, y, z], shared by the CPU kernels of voxelize and window_partition.
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

  CellRange() {
    low.fill(std::numeric_limits<int64_t>::max());
    high.fill(std::numeric_limits<int64_t>::min());
  }

  void include(const CellRange& other) {
    for (int axis = 0; axis < 4; ++axis) {
      low[axis] = std::min(low[axis], other.low[axis]);
      high[axis] = std::max(high[axis], other.high[axis]);
    }
  }
};

// Rows in contiguous parts, one a thread unless there are few.
class RowChunks {
 public:
  explicit RowChunks(int64_t rows)
      : rows_(rows),
        count_(std::clamp<int64_t>(rows / kRowsPerChunk, 1, static_cast<int64_t>(torch::stable::get_num_threads()))) {}

  int64_t rows() const { return rows_; }
  int64_t count() const { return count_; }

  // Calls work(chunk, begin, end) for all chunks, in parallel.
  template <typename Work>
  void for_each(const Work& work) const {
    torch::stable::parallel_for(0, count_, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        work(chunk, rows_ * chunk / count_, rows_ * (chunk + 1) / count_);
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
      bits_ += bit_length(static_cast<uint64_t>(range.high[axis]) - static_cast<uint64_t>(range.low[axis]));
    }
  }

  int bits() const { return bits_; }

  template <typename Key>
  Key key(const Cell& cell) const {
    Key key = 0;
    for (int axis = 0; axis < 4; ++axis) {
      // A number that is the same everywhere takes no bits, and its shift may be the key's whole width.
      const Key part = static_cast<Key>(static_cast<uint64_t>(cell[axis] - low_[axis]));
      if (part != 0) key |= part << shift_[axis];
    }
    return key;
  }

 private:
  Cell low_;
  std::array<int, 4> shift_;
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

template <typename Records, typename CellOfRow>
std::vector<int64_t> sort_records(const Records& records, const KeyLayout& layout, const RowChunks& chunks,
                                  const CellOfRow& cell_of_row, int64_t* order) {
  using Record = typename Records::Record;
  const int64_t count = chunks.rows();
  std::unique_ptr<Record[]> sorted(new Record[count]);  // unlike a vector's, its elements are not set to zero first
  std::vector<char> ascends(chunks.count(), true);
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      sorted[row] = records.make(layout.key<typename Records::Key>(cell_of_row(row)), row);
      if (row > begin && records.key(sorted[row]) < records.key(sorted[row - 1])) ascends[chunk] = false;
    }
  });
  bool is_sorted = std::all_of(ascends.begin(), ascends.end(), [](char yes) { return yes; });
  for (int64_t chunk = 1; is_sorted && chunk < chunks.count(); ++chunk) {
    const int64_t begin = count * chunk / chunks.count();
    is_sorted = records.key(sorted[begin - 1]) <= records.key(sorted[begin]);
  }
  if (!is_sorted) {
    std::unique_ptr<Record[]> other(new Record[count]);
    std::vector<int64_t> places(chunks.count() << kMaxDigitBits);
    const int passes = (layout.bits() + kMaxDigitBits - 1) / kMaxDigitBits;
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = layout.bits() * pass / passes, end = layout.bits() * (pass + 1) / passes;
      distribute(records, chunks, shift, end - shift, sorted.get(), other.get(), places);
      sorted.swap(other);
    }
  }

  // Where a key differs from the one before it, a group begins.
  const auto begins_group = [&](int64_t i) {
    return i == 0 || records.key(sorted[i]) != records.key(sorted[i - 1]);
  };
  std::vector<int64_t> first_group(chunks.count() + 1, 0);
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t groups = 0;
    for (int64_t i = begin; i < end; ++i) groups += begins_group(i);
    first_group[chunk + 1] = groups;
  });
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) first_group[chunk + 1] += first_group[chunk];
  std::vector<int64_t> starts(first_group.back() + 1);
  starts.back() = count;
  chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t group = first_group[chunk];
    for (int64_t i = begin; i < end; ++i) {
      order[i] = records.row(sorted[i]);
      if (begins_group(i)) starts[group++] = i;
    }
  });
  return starts;
}

// Sorts rows by their cells, equal cells by row.
//
// cell_of_row(row) gives a row's Cell, inside of `range`. Writes the sorted rows to `order`; returns where groups of equal cells
// begin in it, and the number of rows at the end.
template <typename CellOfRow>
std::vector<int64_t> sort_cells(const RowChunks& chunks, const CellRange& range, const CellOfRow& cell_of_row,
                                int64_t* order) {
  if (chunks.rows() == 0) return {0};
  const KeyLayout layout(range);
  const int row_bits = bit_length(static_cast<uint64_t>(chunks.rows() - 1));
  if (layout.bits() + row_bits <= 63) {
    return sort_records(NarrowRecords(row_bits), layout, chunks, cell_of_row, order);
  }
  return sort_records(WideRecords(), layout, chunks, cell_of_row, order);
}

}  // namespace geo3d
