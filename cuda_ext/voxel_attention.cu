// CUDA kernels of geo3d::voxel_attention and its backward. geo3d/ops/voxel_attention.py tells what they compute and has
// checked the arguments, but not the values of order, offsets and signals, which are clamped here.
//
// A block takes a tile of kOwn voxels of one window and one head, and meets the window's other voxels some kOthers at a
// time, with a softmax that is corrected as larger logits turn up. A thread owns the pairs of one voxel of the tile with
// every kSlices-th other voxel; their logits are in its registers. The products of the voxels with the rows of a table
// that they reach are computed once per tile, axis by axis, in shared memory, where each pair looks them up. The value's
// and all gradients' tables are reached the other way: a pair adds its weight to its voxel's histogram, which is then
// multiplied by the table. So neither look-ups nor memory grow with the head's channels, and no array has an element for
// every pair.
//
// Lanes of a warp are different voxels of the tile. Each has a column of its own in `of_own` and in the histograms, so that
// no two lanes meet in a bank and a histogram needs no atomics. In `of_others` lanes read rows of one other voxel; those that
// Swin3D's signals reach on an axis lie within 32 in a row, which are different banks.
//
// Nothing depends on timing: sums over pairs are one thread's, sums over threads have a fixed order, and table gradients are
// summed in a number of parts that depends on shapes alone. Equal input gives equal bits.
//
// Expected, not measured: issued instructions limit it. By count of operations a pair and head takes some 400 in the
// forward, with 9 axes, 16 channels and windows of 100 voxels that reach 216 rows: 170 in products with tables, 120 in bins,
// 100 in look-ups and histograms; so 11 M pairs and 6 heads take an H200 about 1 ms, and two and a half times that again in the
// backward. Next would be the products on tensor cores, and two heads a thread, which share their bins.

#include <optional>
#include <tuple>
#include <vector>

#include "cuda_common.cuh"

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kOwn = 64;    // voxels of a tile
constexpr int kSlices = 4;  // threads of each of them
constexpr int kThreads = kOwn * kSlices;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 64;        // of an axis, looked up at a time
constexpr int kCounted = 32;     // of an axis, in histograms at a time
constexpr int kPitch = kWarp + 4;  // of a histogram's rows: aligned, and four rows in different banks
constexpr int kTogether = 8;     // pairs that a thread works on without a branch, so that none waits for another's memory
constexpr int kMaxAxes = 64;     // geo3d/ops/voxel_attention.py sends more to the reference, and so with channels
constexpr int kMaxDepth = 64;
constexpr int kBlocks = 512;     // of the backward, each with its own sum of the tables' gradients

// A tensor (rows, heads, channels) of any floating dtype and strides.
struct View {
  const void* data = nullptr;
  int64_t row = 0, head = 0, channel = 0;
  ScalarType dtype = ScalarType::Float;

  View() = default;
  explicit View(const Tensor& tensor)
      : data(tensor.const_data_ptr()),
        row(tensor.stride(0)),
        head(tensor.stride(1)),
        channel(tensor.dim() > 2 ? tensor.stride(2) : 0),
        dtype(tensor.scalar_type()) {}

  __device__ float operator()(int64_t r, int64_t h, int64_t c) const {
    const int64_t place = r * row + h * head + c * channel;
    switch (dtype) {
      case ScalarType::BFloat16:
        return static_cast<float>(static_cast<const BFloat16*>(data)[place]);
      case ScalarType::Half:
        return static_cast<float>(static_cast<const Half*>(data)[place]);
      case ScalarType::Double:  // log-sum-exp may be
        return static_cast<float>(static_cast<const double*>(data)[place]);
      default:
        return static_cast<const float*>(data)[place];
    }
  }
};

// A contiguous tensor to write.
struct Result {
  void* data;
  ScalarType dtype;

  explicit Result(Tensor& tensor) : data(tensor.mutable_data_ptr()), dtype(tensor.scalar_type()) {}

  __device__ void write(int64_t place, float value) const {
    switch (dtype) {
      case ScalarType::BFloat16:
        static_cast<BFloat16*>(data)[place] = static_cast<BFloat16>(value);
        break;
      case ScalarType::Half:
        static_cast<Half*>(data)[place] = static_cast<Half>(value);
        break;
      default:
        static_cast<float*>(data)[place] = value;
    }
  }
};

struct Axes {
  int count = 0;
  int bins[kMaxAxes];
  int64_t first[kMaxAxes];  // row in a table
  int64_t rows = 0;         // of a table
};

// The arguments. Tables are packed: (H, R, depth) in float32, with zeros behind the channels, and a bias table (H, R).
struct Problem {
  View query, key, value;
  const int64_t* order;
  int64_t order_stride;
  const void* offsets;
  int64_t offset_stride;
  bool wide_offsets;
  int64_t voxels, windows, tiles;
  int heads, channels;
  float scale;
  const float* signals;  // (A, N), windows' voxels in a row
  const float* query_table;
  const float* key_table;
  const float* value_table;
  const float* bias_table;
  Axes axes;

  __device__ int64_t offset(int64_t window) const {
    const int64_t place = window * offset_stride;
    const int64_t given = wide_offsets ? static_cast<const int64_t*>(offsets)[place]
                                       : static_cast<const int32_t*>(offsets)[place];
    return min(max(given, int64_t{0}), voxels);
  }

  __device__ int64_t row(int64_t position) const {
    return min(max(order[position * order_stride], int64_t{0}), voxels - 1);
  }

  __device__ bool contextual() const { return query_table != nullptr; }
};

// Rows of a table for a head.
__device__ const float* of_head(const float* table, const Problem& p, int head, int depth) {
  return table == nullptr ? nullptr : table + head * p.axes.rows * depth;
}

// Which row of an axis belongs to a difference of signals: additions in float32, each rounded, in the published order.
// Monotone, so the ends of a range give the ends of its rows.
__device__ int row_of(float query, float key, int bins) {
  const float d = __fadd_rn(__fsub_rn(query, key), 0.5f * static_cast<float>(bins));
  return static_cast<int>(fminf(fmaxf(d, 0.0f), static_cast<float>(bins - 1)));  // 0 for what is not a number
}

template <bool kOwnIsQuery>
__device__ int row_of_pair(float own, float other, int bins) {
  return kOwnIsQuery ? row_of(own, other, bins) : row_of(other, own, bins);
}

// Up to kOwn voxels of a window.
struct Tile {
  int64_t begin;  // the window's first voxel
  int64_t count;  // voxels of the window
  int64_t first;  // the tile's first one in the window

  __device__ bool is_empty() const { return first >= count; }
};

// Window w has the tiles from number offset(w) / kOwn + w on: as many as it needs or one more, which is empty. So a tile
// finds its window by itself.
__device__ Tile find_tile(const Problem& p, int64_t number) {
  int64_t low = 0, high = p.windows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.offset(middle) / kOwn + middle <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = p.offset(low);
  return {begin, p.offset(low + 1) - begin, max(number - begin / kOwn - low, int64_t{0}) * kOwn};
}

int64_t count_tiles(int64_t voxels, int64_t windows) { return voxels / kOwn + windows; }

// What a block has in shared memory.
template <int kDepth, bool kBackward>
struct Shared {
  static constexpr int kOthers = kDepth <= 32 ? 128 : 32;  // others at a time
  static constexpr int kEach = kOthers / kSlices;
  static constexpr int kStride = kDepth + 4;  // aligned, and few voxels of a warp in one bank

  struct Products {
    float of_own[kRows][kOwn];
    float of_others[kOthers][kRows + 1];
  };
  struct Counts {
    float weights[kOthers][kOwn];
    float histograms[kWarps][kCounted][kPitch];
  };

  alignas(16) float others[kOthers][kStride];
  alignas(16) float own[kBackward ? kOwn : 1][kStride];  // by which histograms are multiplied for a table's gradient
  union {
    Products products;
    Counts counts;
    float result[kDepth][kOwn];
  };
  float sums[kSlices][kOwn];
  float signals[kOthers];  // of the others, on one axis
  float other_lse[kBackward ? kOthers : 1], other_delta[kBackward ? kOthers : 1];
  int low[kMaxAxes], high[kMaxAxes];  // rows of an axis that pairs of the tile and the others reach
};

// One thread's part of a tile: its own voxel, and the others that it meets now.
template <int kDepth, bool kBackward, bool kOwnIsQuery>
struct Worker {
  using Memory = Shared<kDepth, kBackward>;
  static constexpr int kEach = Memory::kEach;

  const Problem& p;
  Memory& s;
  const Tile tile;
  const int head, thread, own, slice, warp, lane;
  const int64_t position;  // of its voxel among all windows' voxels; the window's first one where it has none
  const bool has_own;
  const bool has_work;     // some lane of the warp has a voxel
  int64_t start = 0;       // the others' first one in the window
  int others = 0;

  __device__ Worker(const Problem& problem, Memory& memory, const Tile& of, int of_head)
      : p(problem),
        s(memory),
        tile(of),
        head(of_head),
        thread(threadIdx.x),
        own(threadIdx.x % kOwn),
        slice(threadIdx.x / kOwn),
        warp(threadIdx.x / kWarp),
        lane(threadIdx.x % kWarp),
        position(of.begin + (of.first + own < of.count ? of.first + own : 0)),
        has_own(of.first + own < of.count),
        has_work(of.first + own - lane < of.count) {}

  // The k-th other voxel of this thread, and whether there is one to work on.
  __device__ int other(int k) const { return k * kSlices + slice; }
  __device__ bool has(int k) const { return has_work && other(k) < others; }

  // Calls visit(k) for the others of this thread, kTogether at a time: some may be past the last one.
  template <typename Visit>
  __device__ void for_each_other(const Visit& visit) const {
#pragma unroll
    for (int first = 0; first < kEach; first += kTogether) {
      if (!has(first)) continue;
#pragma unroll
      for (int k = first; k < first + kTogether; ++k) visit(k);
    }
  }

  __device__ void load_own(const View& from, float scale, float (&to)[kDepth]) const {
    const int64_t row = p.row(position);
    for (int c = 0; c < kDepth; ++c) to[c] = has_own && c < p.channels ? from(row, head, c) * scale : 0.0f;
  }

  // Others from `start` on, and zeros behind them to a whole kTogether of every thread; by all threads, between barriers.
  __device__ void load_others(const View& from, float scale) const {
    constexpr int kWhole = kTogether * kSlices;
    const int padded = (others + kWhole - 1) / kWhole * kWhole;
    for (int i = thread; i < padded * kDepth; i += kThreads) {
      const int j = i / kDepth, c = i % kDepth;
      const bool given = j < others && c < p.channels;
      s.others[j][c] = given ? from(p.row(tile.begin + start + j), head, c) * scale : 0.0f;
    }
  }

  __device__ const float* own_signal(int axis) const { return p.signals + axis * p.voxels + position; }
  __device__ const float* other_signals(int axis) const { return p.signals + axis * p.voxels + tile.begin + start; }

  // Which rows of each axis pairs of the tile and the others reach; a warp for each axis.
  __device__ void find_rows() const {
    for (int axis = warp; axis < p.axes.count; axis += kWarps) {
      const float* signals = p.signals + axis * p.voxels + tile.begin;
      float own_low = INFINITY, own_high = -INFINITY, low = INFINITY, high = -INFINITY;
      for (int i = lane; i < kOwn && tile.first + i < tile.count; i += kWarp) {
        own_low = fminf(own_low, signals[tile.first + i]);
        own_high = fmaxf(own_high, signals[tile.first + i]);
      }
      for (int j = lane; j < others; j += kWarp) {
        low = fminf(low, signals[start + j]);
        high = fmaxf(high, signals[start + j]);
      }
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        own_low = fminf(own_low, __shfl_xor_sync(0xFFFFFFFF, own_low, distance));
        own_high = fmaxf(own_high, __shfl_xor_sync(0xFFFFFFFF, own_high, distance));
        low = fminf(low, __shfl_xor_sync(0xFFFFFFFF, low, distance));
        high = fmaxf(high, __shfl_xor_sync(0xFFFFFFFF, high, distance));
      }
      if (lane == 0) {
        const int bins = p.axes.bins[axis];
        s.low[axis] = kOwnIsQuery ? row_of(own_low, high, bins) : row_of(low, own_high, bins);
        s.high[axis] = kOwnIsQuery ? row_of(own_high, low, bins) : row_of(high, own_low, bins);
      }
    }
  }

  __device__ static float dot(const float (&own)[kDepth], const float* row) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kDepth; c += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + c);
      sum = fmaf(own[c], four.x, sum);
      sum = fmaf(own[c + 1], four.y, sum);
      sum = fmaf(own[c + 2], four.z, sum);
      sum = fmaf(own[c + 3], four.w, sum);
    }
    return sum;
  }

  __device__ static void add(float weight, const float* row, float (&to)[kDepth]) {
#pragma unroll
    for (int c = 0; c < kDepth; c += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + c);
      to[c] = fmaf(weight, four.x, to[c]);
      to[c + 1] = fmaf(weight, four.y, to[c + 1]);
      to[c + 2] = fmaf(weight, four.z, to[c + 2]);
      to[c + 3] = fmaf(weight, four.w, to[c + 3]);
    }
  }

  // Products of the own voxel with the others; zero where there is none.
  __device__ void multiply_pairs(const float (&own_vector)[kDepth], float (&sums)[kEach]) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) sums[k] = 0.0f;
    for_each_other([&](int k) { sums[k] = dot(own_vector, s.others[other(k)]); });
  }

  // to += over the others, weight times voxel. Weights of those that there are not must be zero.
  __device__ void add_others(const float (&weights)[kEach], float (&to)[kDepth]) const {
    for_each_other([&](int k) { add(weights[k], s.others[other(k)], to); });
  }

  // Adds to each pair the terms of its rows: products of the own voxel with one table, products of the other voxel with
  // another, or the row of a bias table. Tables are those of the head; null: no such term.
  __device__ void look_up(const float (&own_vector)[kDepth], const float* own_table, const float* others_table,
                          const float* bias_table, float (&sums)[kEach]) const {
    for (int axis = 0; axis < p.axes.count; ++axis) {
      const int high = s.high[axis];
      for (int first = s.low[axis]; first <= high; first += kRows) {
        const int rows = min(kRows, high - first + 1);
        const int64_t first_row = p.axes.first[axis] + first;
        __syncthreads();  // what was there has been read
        if (thread < others) s.signals[thread] = other_signals(axis)[thread];
        if (own_table != nullptr) {
          const float* table = own_table + first_row * kDepth;
#pragma unroll 4
          for (int r = slice; r < rows; r += kSlices) s.products.of_own[r][own] = dot(own_vector, table + r * kDepth);
        } else if (bias_table != nullptr) {
          for (int r = slice; r < rows; r += kSlices) s.products.of_own[r][own] = bias_table[first_row + r];
        }
        if (others_table != nullptr) multiply_others(others_table + first_row * kDepth, rows);
        __syncthreads();
        if (others_table == nullptr) {
          add_products<true, false>(axis, first, rows, sums);
        } else if (own_table == nullptr) {
          add_products<false, true>(axis, first, rows, sums);
        } else {
          add_products<true, true>(axis, first, rows, sums);
        }
      }
    }
  }

  template <bool kOfOwn, bool kOfOthers>
  __device__ void add_products(int axis, int first, int rows, float (&sums)[kEach]) const {
    const int bins = p.axes.bins[axis];
    const float own_signal_here = *own_signal(axis);
    for_each_other([&](int k) {
      const int j = other(k), r = row_of_pair<kOwnIsQuery>(own_signal_here, s.signals[j], bins) - first;
      const bool found = r >= 0 && r < rows && j < others;
      const int place = found ? r : 0;
      float sum = 0.0f;
      if (kOfOwn) sum += s.products.of_own[place][own];
      if (kOfOthers) sum += s.products.of_others[j][place];
      sums[k] += found ? sum : 0.0f;
    });
  }

  // Products of the others with some rows of a table.
  __device__ void multiply_others(const float* table, int rows) const {
    const int j = thread % Memory::kOthers;
    if (j >= others) return;
    float vector[kDepth];
#pragma unroll
    for (int c = 0; c < kDepth; c += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&s.others[j][c]);
      vector[c] = four.x;
      vector[c + 1] = four.y;
      vector[c + 2] = four.z;
      vector[c + 3] = four.w;
    }
#pragma unroll 4
    for (int r = thread / Memory::kOthers; r < rows; r += kThreads / Memory::kOthers) {
      s.products.of_others[j][r] = dot(vector, table + int64_t{r} * kDepth);
    }
  }

  // Makes weights of pairs known to all threads of the own voxel. A barrier must follow.
  __device__ void show(const float (&weights)[kEach]) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      if (has(k)) s.counts.weights[other(k)][own] = weights[k];
    }
  }

  // Makes own voxels known to all threads, where table gradients need them. A barrier must follow.
  __device__ void show_own(const View& from, float scale) const {
    const int64_t row = p.row(position);
    for (int c = slice; c < p.channels; c += kSlices) s.own[own][c] = has_own ? from(row, head, c) * scale : 0.0f;
  }

  // Some rows of an axis; none: past the last.
  struct Segment {
    int axis, first, rows;
  };

  __device__ Segment find_segment(int number) const {
    for (int axis = 0; axis < p.axes.count; ++axis) {
      const int width = max(s.high[axis] - s.low[axis] + 1, 0);
      const int pieces = (width + kCounted - 1) / kCounted;
      if (number < pieces) {
        return {axis, s.low[axis] + number * kCounted, min(kCounted, width - number * kCounted)};
      }
      number -= pieces;
    }
    return {0, 0, 0};
  }

  // Adds up the weights that were shown by the rows that their pairs look up. Each warp has other rows: its lanes' voxels
  // meet all others. Then result += histogram times table, where there is one (this thread's part of the sum over its
  // voxel's threads), and gradient += histogram^T times `own`, where there is one: (R, channels) of the block alone.
  __device__ void count(const float* table, float (&result)[kDepth], float* gradient, int channels) const {
    float(&histogram)[kCounted][kPitch] = s.counts.histograms[warp];
    for (int round = 0; find_segment(round).rows > 0; round += kSlices) {
      const Segment segment = find_segment(round + slice);
      for (int r = 0; r < (segment.rows + 3) / 4 * 4; ++r) histogram[r][lane] = 0.0f;
      if (segment.rows > 0 && has_work) {
        const int bins = p.axes.bins[segment.axis];
        const float own_signal_here = *own_signal(segment.axis);
        const float* signals = other_signals(segment.axis);
        for (int j = 0; j < others; j += 4) {
          int rows[4];
          float weights[4];
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            const int here = min(j + b, others - 1);
            rows[b] = row_of_pair<kOwnIsQuery>(own_signal_here, signals[here], bins) - segment.first;
            weights[b] = j + b < others ? s.counts.weights[here][own] : 0.0f;
          }
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            if (rows[b] >= 0 && rows[b] < segment.rows) histogram[rows[b]][lane] += weights[b];
          }
        }
        if (table != nullptr) {
          const float* rows = table + (p.axes.first[segment.axis] + segment.first) * kDepth;
#pragma unroll 4
          for (int r = 0; r < segment.rows; ++r) add(histogram[r][lane], rows + r * kDepth, result);
        }
      }
      if (gradient != nullptr) {
        __syncthreads();
        for (int i = 0; i < kSlices; ++i) add_outer_products(find_segment(round + i), i, gradient, channels);
        __syncthreads();
      }
    }
  }

  // A thread sums four rows of a channel over the tile's voxels.
  __device__ void add_outer_products(const Segment& segment, int of_slice, float* gradient, int channels) const {
    float* to = gradient + (p.axes.first[segment.axis] + segment.first) * channels;
    for (int item = thread; item < (segment.rows + 3) / 4 * channels; item += kThreads) {
      const int r = item / channels * 4, c = item % channels;
      float sums[4] = {};
      for (int i = 0; i < kOwn; i += 4) {
        const auto& histogram = s.counts.histograms[of_slice * (kOwn / kWarp) + i / kWarp];
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          const float4 four = *reinterpret_cast<const float4*>(&histogram[r + b][i % kWarp]);
          sums[b] = fmaf(four.x, s.own[i][c], sums[b]);
          sums[b] = fmaf(four.y, s.own[i + 1][c], sums[b]);
          sums[b] = fmaf(four.z, s.own[i + 2][c], sums[b]);
          sums[b] = fmaf(four.w, s.own[i + 3][c], sums[b]);
        }
      }
      for (int b = 0; b < 4 && r + b < segment.rows; ++b) to[(r + b) * channels + c] += sums[b];
    }
  }

  // The sum over the threads of each voxel, in their order; in all of them.
  __device__ float sum_of_slices(float part) const {
    s.sums[slice][own] = part;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < kSlices; ++i) sum += s.sums[i][own];
    __syncthreads();
    return sum;
  }

  // The same for vectors, times a factor, into a contiguous tensor (N, H, D).
  __device__ void write_sum_of_slices(const float (&part)[kDepth], float factor, const Result& to) const {
    for (int i = 0; i < kSlices; ++i) {
      __syncthreads();
      if (slice != i) continue;
#pragma unroll
      for (int c = 0; c < kDepth; ++c) s.result[c][own] = part[c] + (i == 0 ? 0.0f : s.result[c][own]);
    }
    __syncthreads();
    if (has_own) {
      const int64_t place = (p.row(position) * p.heads + head) * p.channels;
      for (int c = slice; c < p.channels; c += kSlices) to.write(place + c, s.result[c][own] * factor);
    }
    __syncthreads();
  }
};

template <int kDepth>
__device__ void attend_tile(const Worker<kDepth, false, true>& of_tile, const Result& out, float* lse) {
  constexpr int kEach = Worker<kDepth, false, true>::kEach;
  Worker<kDepth, false, true> w = of_tile;
  const Problem& p = w.p;
  const float* query_table = of_head(p.query_table, p, w.head, kDepth);
  const float* key_table = of_head(p.key_table, p, w.head, kDepth);
  const float* value_table = of_head(p.value_table, p, w.head, kDepth);
  const float* bias_table = of_head(p.bias_table, p, w.head, 1);
  float query[kDepth], result[kDepth] = {}, logits[kEach];
  w.load_own(p.query, p.scale, query);
  float largest = -INFINITY, sum = 0.0f;  // the sum over this thread's keys
  for (; w.start < w.tile.count; w.start += w.s.kOthers) {
    w.others = static_cast<int>(min(int64_t{w.s.kOthers}, w.tile.count - w.start));
    w.load_others(p.key, 1.0f);
    w.find_rows();
    __syncthreads();
    w.multiply_pairs(query, logits);
    w.look_up(query, query_table, key_table, bias_table, logits);
    float top = -INFINITY;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      if (w.has(k)) top = fmaxf(top, logits[k]);
    }
    w.s.sums[w.slice][w.own] = top;
    __syncthreads();
    const float before = largest;
    for (int i = 0; i < kSlices; ++i) largest = fmaxf(largest, w.s.sums[i][w.own]);
    const float correction = expf(before - largest);
    sum *= correction;
#pragma unroll
    for (int c = 0; c < kDepth; ++c) result[c] *= correction;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      logits[k] = w.has(k) ? expf(logits[k] - largest) : 0.0f;
      sum += logits[k];
    }
    w.load_others(p.value, 1.0f);
    if (p.contextual()) w.show(logits);
    __syncthreads();
    w.add_others(logits, result);
    if (p.contextual()) w.count(value_table, result, nullptr, 0);
    __syncthreads();
  }
  sum = w.sum_of_slices(sum);
  w.write_sum_of_slices(result, 1.0f / sum, out);
  if (w.has_own && w.slice == 0) lse[p.row(w.position) * p.heads + w.head] = largest + logf(sum);
}

template <int kDepth>
__global__ void __launch_bounds__(kThreads, kDepth <= 16 ? 2 : 1) attend(Problem p, Result out, float* lse) {
  extern __shared__ float4 memory[];
  auto& shared = *reinterpret_cast<Shared<kDepth, false>*>(memory);
  for (int64_t number = blockIdx.x; number < p.tiles; number += gridDim.x) {
    const Tile tile = find_tile(p, number);
    if (tile.is_empty()) continue;
    attend_tile<kDepth>(Worker<kDepth, false, true>(p, shared, tile, static_cast<int>(blockIdx.y)), out, lse);
  }
}

// What the backward is given and what it leaves. Tables' gradients are (parts, 3 or 1 tables, H, R, channels).
struct Gradients {
  View of_out, of_lse, lse;
  float* delta;  // (N, H): what a query's probabilities and their gradients have in common
  float* of_tables;
  int tables, table_channels;

  // Of one table and head, in one part.
  __device__ float* of_table(const Problem& p, int64_t part, int table, int head) const {
    if (of_tables == nullptr) return nullptr;
    return of_tables + ((part * tables + table) * p.heads + head) * p.axes.rows * table_channels;
  }
};

// Gradients that queries own: the query's, those of its table and of the value's, or that of the bias table.
template <int kDepth>
__device__ void differentiate_queries(const Worker<kDepth, true, true>& of_tile, const Gradients& g,
                                      const Result& of_query) {
  constexpr int kEach = Worker<kDepth, true, true>::kEach;
  Worker<kDepth, true, true> w = of_tile;
  const Problem& p = w.p;
  const float* query_table = of_head(p.query_table, p, w.head, kDepth);
  const float* key_table = of_head(p.key_table, p, w.head, kDepth);
  const float* value_table = of_head(p.value_table, p, w.head, kDepth);
  const float* bias_table = of_head(p.bias_table, p, w.head, 1);
  float own[kDepth], result[kDepth] = {};       // its voxel is loaded again and again: registers are what lacks
  float probabilities[kEach], gradients[kEach];  // of the logits in the end
  const int64_t row = p.row(w.position);
  const float lse = g.lse(row, w.head, 0);
  const bool at_once = w.tile.count <= w.s.kOthers;  // then the first pass leaves what the second needs
  float delta = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    for (w.start = 0; w.start < w.tile.count; w.start += w.s.kOthers) {
      w.others = static_cast<int>(min(int64_t{w.s.kOthers}, w.tile.count - w.start));
      if (pass == 0 || !at_once) {
        w.load_others(p.key, 1.0f);
        w.find_rows();
        w.load_own(p.query, p.scale, own);
        __syncthreads();
        w.multiply_pairs(own, probabilities);
        w.look_up(own, query_table, key_table, bias_table, probabilities);
#pragma unroll
        for (int k = 0; k < kEach; ++k) {
          probabilities[k] = w.has(k) && w.has_own ? expf(probabilities[k] - lse) : 0.0f;
        }
        __syncthreads();
        w.load_others(p.value, 1.0f);
        w.load_own(g.of_out, 1.0f, own);
        __syncthreads();
        w.multiply_pairs(own, gradients);
        if (p.contextual()) w.look_up(own, value_table, nullptr, nullptr, gradients);
        __syncthreads();
      }
      if (pass == 0) {
#pragma unroll
        for (int k = 0; k < kEach; ++k) delta = fmaf(probabilities[k], gradients[k], delta);
        continue;
      }
#pragma unroll
      for (int k = 0; k < kEach; ++k) gradients[k] = probabilities[k] * (gradients[k] - delta);
      w.load_others(p.key, 1.0f);
      if (p.axes.count > 0) {
        w.show(gradients);
        if (p.contextual()) {
          w.show_own(p.query, p.scale);
        } else if (w.slice == 0) {
          w.s.own[w.own][0] = 1.0f;
        }
      }
      __syncthreads();
      w.add_others(gradients, result);
      if (p.axes.count > 0) {
        w.count(query_table, result, g.of_table(p, blockIdx.x, 0, w.head), g.table_channels);
      }
      if (p.contextual()) {
        w.show(probabilities);
        w.show_own(g.of_out, 1.0f);
        __syncthreads();
        w.count(nullptr, result, g.of_table(p, blockIdx.x, 2, w.head), g.table_channels);
      }
      __syncthreads();
    }
    if (pass == 0) {
      delta = w.sum_of_slices(delta) - g.of_lse(row, w.head, 0);
      if (w.has_own && w.slice == 0) g.delta[row * p.heads + w.head] = delta;
    }
  }
  w.write_sum_of_slices(result, p.scale, of_query);
}

template <int kDepth>
__global__ void __launch_bounds__(kThreads, kDepth <= 16 ? 2 : 1) differentiate_by_query(Problem p, Gradients g, Result of_query) {
  extern __shared__ float4 memory[];
  auto& shared = *reinterpret_cast<Shared<kDepth, true>*>(memory);
  for (int64_t number = blockIdx.x; number < p.tiles; number += gridDim.x) {
    const Tile tile = find_tile(p, number);
    if (tile.is_empty()) continue;
    differentiate_queries<kDepth>(Worker<kDepth, true, true>(p, shared, tile, static_cast<int>(blockIdx.y)), g, of_query);
  }
}

// Gradients that keys own: the key's and the value's, and that of the key's table.
template <int kDepth>
__device__ void differentiate_keys(const Worker<kDepth, true, false>& of_tile, const Gradients& g, const Result& of_key,
                                   const Result& of_value) {
  constexpr int kEach = Worker<kDepth, true, false>::kEach;
  Worker<kDepth, true, false> w = of_tile;
  const Problem& p = w.p;
  const float* query_table = of_head(p.query_table, p, w.head, kDepth);
  const float* key_table = of_head(p.key_table, p, w.head, kDepth);
  const float* value_table = of_head(p.value_table, p, w.head, kDepth);
  const float* bias_table = of_head(p.bias_table, p, w.head, 1);
  float own[kDepth], key_result[kDepth] = {}, value_result[kDepth] = {};
  float probabilities[kEach], gradients[kEach];
  for (; w.start < w.tile.count; w.start += w.s.kOthers) {
    w.others = static_cast<int>(min(int64_t{w.s.kOthers}, w.tile.count - w.start));
    w.load_others(p.query, p.scale);
    w.find_rows();
    w.load_own(p.key, 1.0f, own);
    if (w.thread < w.others) {
      const int64_t row = p.row(w.tile.begin + w.start + w.thread);
      w.s.other_lse[w.thread] = g.lse(row, w.head, 0);
      w.s.other_delta[w.thread] = g.delta[row * p.heads + w.head];
    }
    __syncthreads();
    w.multiply_pairs(own, probabilities);
    w.look_up(own, key_table, query_table, bias_table, probabilities);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      probabilities[k] = w.has(k) && w.has_own ? expf(probabilities[k] - w.s.other_lse[w.other(k)]) : 0.0f;
    }
    __syncthreads();
    w.load_others(g.of_out, 1.0f);
    w.load_own(p.value, 1.0f, own);
    __syncthreads();
    w.multiply_pairs(own, gradients);
    if (p.contextual()) w.look_up(own, nullptr, value_table, nullptr, gradients);
    w.add_others(probabilities, value_result);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      if (w.has(k)) gradients[k] = probabilities[k] * (gradients[k] - w.s.other_delta[w.other(k)]);
    }
    __syncthreads();
    w.load_others(p.query, p.scale);
    if (p.contextual()) {
      w.show(gradients);
      w.show_own(p.key, 1.0f);
    }
    __syncthreads();
    w.add_others(gradients, key_result);
    if (p.contextual()) w.count(key_table, key_result, g.of_table(p, blockIdx.x, 1, w.head), g.table_channels);
    __syncthreads();
  }
  w.write_sum_of_slices(key_result, 1.0f, of_key);
  w.write_sum_of_slices(value_result, 1.0f, of_value);
}

template <int kDepth>
__global__ void __launch_bounds__(kThreads, kDepth <= 16 ? 2 : 1) differentiate_by_key(Problem p, Gradients g, Result of_key,
                                                                 Result of_value) {
  extern __shared__ float4 memory[];
  auto& shared = *reinterpret_cast<Shared<kDepth, true>*>(memory);
  for (int64_t number = blockIdx.x; number < p.tiles; number += gridDim.x) {
    const Tile tile = find_tile(p, number);
    if (tile.is_empty()) continue;
    differentiate_keys<kDepth>(Worker<kDepth, true, false>(p, shared, tile, static_cast<int>(blockIdx.y)), g, of_key,
                               of_value);
  }
}

// Signals (N, A) -> (A, N), in the order of the windows.
__global__ void pack_signals(const float* __restrict__ signals, int64_t row_stride, int64_t axis_stride, Problem p,
                             float* __restrict__ packed) {
  const int64_t total = p.voxels * p.axes.count;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    packed[i] = signals[p.row(i % p.voxels) * row_stride + i / p.voxels * axis_stride];
  }
}

// A table (R, H, D) -> (H, R, depth).
__global__ void pack_table(View table, int64_t rows, int heads, int channels, int depth, float* __restrict__ packed) {
  const int64_t total = heads * rows * depth;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += int64_t{kThreads} * gridDim.x) {
    const int c = static_cast<int>(i % depth);
    packed[i] = c < channels ? table(i / depth % rows, i / depth / rows, c) : 0.0f;
  }
}

// The parts' sums of one table's gradient, (parts, tables, H, R, channels) -> (R, H, channels), one after the other.
__global__ void add_parts(const float* __restrict__ sums, int64_t parts, int tables, int table, int64_t rows, int heads,
                          int channels, Result out) {
  const int64_t of_table = heads * rows * channels;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < of_table; i += int64_t{kThreads} * gridDim.x) {
    const int64_t c = i % channels, row = i / channels % rows, head = i / channels / rows;
    float total = 0.0f;
    for (int64_t part = 0; part < parts; ++part) total += sums[(part * tables + table) * of_table + i];
    out.write((row * heads + head) * channels + c, total);
  }
}

// Calls body(std::integral_constant<int, depth>{}) with the smallest depth that holds so many channels.
template <typename Body>
void for_depth(int64_t channels, const Body& body) {
  STD_TORCH_CHECK(channels <= kMaxDepth, "voxel_attention: the CUDA kernel takes at most ", kMaxDepth, " channels a head");
  if (channels <= 8) {
    body(std::integral_constant<int, 8>{});
  } else if (channels <= 16) {
    body(std::integral_constant<int, 16>{});
  } else if (channels <= 32) {
    body(std::integral_constant<int, 32>{});
  } else {
    body(std::integral_constant<int, 64>{});
  }
}

// The arguments on the device, and the memory that their packed forms are in.
class Prepared {
 public:
  Prepared(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order, const Tensor& offsets,
           const OptionalTensor& signals, const OptionalTensor& query_table, const OptionalTensor& key_table,
           const OptionalTensor& value_table, const OptionalTensor& bias_table, const std::vector<int64_t>& bins,
           double scale)
      : query_(query), stream_(geo3d::current_stream(query)) {
    STD_TORCH_CHECK(bins.size() <= kMaxAxes, "voxel_attention: the CUDA kernel takes at most ", kMaxAxes, " axes");
    STD_TORCH_CHECK(query.size(1) <= UINT16_MAX, "voxel_attention: the CUDA kernel takes at most 65535 heads");
    problem.query = View(query);
    problem.key = View(key);
    problem.value = View(value);
    problem.order = geo3d::data<int64_t>(order);
    problem.order_stride = order.stride(0);
    problem.offsets = offsets.const_data_ptr();
    problem.offset_stride = offsets.stride(0);
    problem.wide_offsets = offsets.scalar_type() == ScalarType::Long;
    problem.voxels = query.size(0);
    problem.windows = offsets.size(0) - 1;
    problem.tiles = count_tiles(problem.voxels, problem.windows);
    problem.heads = static_cast<int>(query.size(1));
    problem.channels = static_cast<int>(query.size(2));
    problem.scale = static_cast<float>(scale);
    for (const int64_t count : bins) {
      STD_TORCH_CHECK(count <= kMaxBins, "voxel_attention: the CUDA kernel takes at most ", kMaxBins, " bins an axis");
      problem.axes.bins[problem.axes.count] = static_cast<int>(count);
      problem.axes.first[problem.axes.count++] = problem.axes.rows;
      problem.axes.rows += count;
    }
    if (signals.has_value()) problem.signals = pack(*signals);
    for_depth(query.size(2), [&](auto depth) {
      if (query_table.has_value()) problem.query_table = pack_rows(*query_table, depth);
      if (key_table.has_value()) problem.key_table = pack_rows(*key_table, depth);
      if (value_table.has_value()) problem.value_table = pack_rows(*value_table, depth);
    });
    if (bias_table.has_value()) problem.bias_table = pack_rows(*bias_table, 1);
  }

  cudaStream_t stream() const { return stream_; }

  // A block for each tile and head where `parts` allow it.
  dim3 grid(int64_t parts) const {
    const int64_t blocks = std::min<int64_t>(std::min(parts, problem.tiles), INT32_MAX);
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(problem.heads));
  }

  Problem problem{};

 private:
  static constexpr int64_t kMaxBins = 1 << 20;  // float32 tells them apart

  float* take(int64_t count) {
    memory_.push_back(torch::stable::new_empty(query_, {count}, ScalarType::Float));
    return geo3d::mutable_data<float>(memory_.back());
  }

  const float* pack(const Tensor& signals) {
    const int64_t count = signals.numel();
    float* packed = take(count);
    pack_signals<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream_>>>(
        geo3d::data<float>(signals), signals.stride(0), signals.stride(1), problem, packed);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return packed;
  }

  const float* pack_rows(const Tensor& table, int depth) {
    const int channels = table.dim() > 2 ? static_cast<int>(table.size(2)) : 1;
    const int64_t count = table.size(0) * table.size(1) * depth;
    float* packed = take(count);
    pack_table<<<geo3d::blocks_for(count, kThreads), kThreads, 0, stream_>>>(
        View(table), table.size(0), problem.heads, channels, depth, packed);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return packed;
  }

  const Tensor& query_;
  cudaStream_t stream_;
  std::vector<Tensor> memory_;
};

// More shared memory than a kernel gets without asking.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

std::tuple<Tensor, Tensor> voxel_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                           const Tensor& order, const Tensor& offsets, const OptionalTensor& signals,
                                           const OptionalTensor& query_table, const OptionalTensor& key_table,
                                           const OptionalTensor& value_table, const OptionalTensor& bias_table,
                                           const std::vector<int64_t>& bins, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const int64_t count = query.size(0), heads = query.size(1);
  Tensor out = torch::stable::new_empty(query, {count, heads, query.size(2)});
  Tensor lse = torch::stable::new_empty(query, {count, heads}, ScalarType::Float);
  if (out.numel() == 0 || offsets.size(0) == 1) return {out, lse};
  const Prepared prepared(query, key, value, order, offsets, signals, query_table, key_table, value_table, bias_table,
                          bins, scale);
  for_depth(query.size(2), [&](auto depth) {
    constexpr int kDepth = decltype(depth)::value;
    constexpr size_t kShared = sizeof(Shared<kDepth, false>);
    allow_shared(attend<kDepth>, kShared);
    attend<kDepth><<<prepared.grid(INT32_MAX), kThreads, kShared, prepared.stream()>>>(
        prepared.problem, Result(out), geo3d::mutable_data<float>(lse));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {out, lse};
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SevenTensors voxel_attention_backward(const Tensor& grad_out, const Tensor& grad_lse, const Tensor& lse,
                                      const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order,
                                      const Tensor& offsets, const OptionalTensor& signals,
                                      const OptionalTensor& query_table, const OptionalTensor& key_table,
                                      const OptionalTensor& value_table, const OptionalTensor& bias_table,
                                      const std::vector<int64_t>& bins, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const int64_t count = query.size(0), heads = query.size(1), channels = query.size(2);
  const auto of_rows = [&] { return torch::stable::new_empty(query, {count, heads, channels}); };
  const auto of_table = [&](const OptionalTensor& table) {
    if (!table.has_value()) return torch::stable::new_empty(query, {0});
    return table->dim() > 2 ? torch::stable::new_empty(query, {table->size(0), heads, channels})
                            : torch::stable::new_empty(query, {table->size(0), heads});
  };
  Tensor of_query = of_rows(), of_key = of_rows(), of_value = of_rows();
  Tensor of_tables[] = {of_table(query_table), of_table(key_table), of_table(value_table), of_table(bias_table)};
  const auto results = [&]() -> SevenTensors {
    return {of_query, of_key, of_value, of_tables[0], of_tables[1], of_tables[2], of_tables[3]};
  };
  if (query.numel() == 0 || offsets.size(0) == 1) {
    for (Tensor& tensor : of_tables) torch::stable::zero_(tensor);
    return results();
  }
  const Prepared prepared(query, key, value, order, offsets, signals, query_table, key_table, value_table, bias_table,
                          bins, scale);
  const Problem& problem = prepared.problem;
  const cudaStream_t stream = prepared.stream();
  const dim3 grid = prepared.grid((kBlocks + heads - 1) / heads);
  Tensor delta = torch::stable::new_empty(query, {count, heads}, ScalarType::Float);
  Gradients gradients{View(grad_out), View(grad_lse), View(lse), geo3d::mutable_data<float>(delta), nullptr, 1, 1};
  if (query_table.has_value()) {
    gradients.tables = 3;
    gradients.table_channels = static_cast<int>(channels);
  }
  const int64_t part = gradients.tables * heads * problem.axes.rows * gradients.table_channels;
  Tensor sums = torch::stable::new_empty(query, {grid.x * part}, ScalarType::Float);
  if (part > 0) {
    gradients.of_tables = geo3d::mutable_data<float>(sums);
    STD_CUDA_CHECK(cudaMemsetAsync(gradients.of_tables, 0, sums.numel() * sizeof(float), stream));
  }
  for_depth(channels, [&](auto depth) {
    constexpr int kDepth = decltype(depth)::value;
    constexpr size_t kShared = sizeof(Shared<kDepth, true>);
    allow_shared(differentiate_by_query<kDepth>, kShared);
    allow_shared(differentiate_by_key<kDepth>, kShared);
    differentiate_by_query<kDepth><<<grid, kThreads, kShared, stream>>>(problem, gradients, Result(of_query));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    differentiate_by_key<kDepth><<<grid, kThreads, kShared, stream>>>(problem, gradients, Result(of_key),
                                                                     Result(of_value));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  for (int table = 0; table < 4; ++table) {
    if (of_tables[table].numel() == 0) continue;
    add_parts<<<geo3d::blocks_for(of_tables[table].numel(), kThreads), kThreads, 0, stream>>>(
        gradients.of_tables, grid.x, gradients.tables, table % 3, problem.axes.rows, problem.heads,
        gradients.table_channels, Result(of_tables[table]));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return results();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CUDA, m) {
  m.impl("voxel_attention", TORCH_BOX(&voxel_attention));
  m.impl("voxel_attention_backward", TORCH_BOX(&voxel_attention_backward));
}
