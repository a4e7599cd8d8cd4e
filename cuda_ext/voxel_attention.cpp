// CPU kernels of geo3d::voxel_attention and its backward. geo3d/ops/voxel_attention.py tells what they compute and has
// checked the arguments.
//
// Windows are independent. Inside one, eight heads lie side by side (voxel_attention.h), so that one look-up serves
// eight of them. A voxel's products with the rows of a table that it can reach are computed once; its pairs then look
// them up. The value's and all gradients' tables are reached the other way: a pair adds its weight to the voxel's
// histogram, which is multiplied by the table when it is complete. Queries, and keys, are taken in chunks, so that what
// they look up and count stays in the second level of cache; of all pairs only the logits are kept.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "head_lanes.h"
#include "large_pages.h"
#include "table_reach.h"
#include "voxel_attention.h"

namespace geo3d {
namespace {

// Table gradients are summed in parts that do not depend on the number of threads: at most kMaxParts, each of at least
// kPairsPerPart pairs.
constexpr int64_t kMaxParts = 32;
constexpr int64_t kPairsPerPart = 16384;

// The loops over pairs that fit the number of axes.
struct Loops {
  decltype(&PairLoops<-1>::add_of_key) add_of_key;
  decltype(&PairLoops<-1>::add_of_query) add_of_query;
  decltype(&PairLoops<-1>::normalise) normalise;
  decltype(&PairLoops<-1>::look_up_gradients<Lanes>) look_up_gradients;
  decltype(&PairLoops<-1>::count_gradients<Lanes>) count_gradients;
  decltype(&PairLoops<-1>::look_up_gradients<Two>) look_up_both;
  decltype(&PairLoops<-1>::count_gradients<Two>) count_both;
  decltype(&PairLoops<-1>::count_of_key) count_of_key;

  template <int kAxes>
  static Loops of() {
    using L = PairLoops<kAxes>;
    return {L::add_of_key,
            L::add_of_query,
            L::normalise,
            L::template look_up_gradients<Lanes>,
            L::template count_gradients<Lanes>,
            L::template look_up_gradients<Two>,
            L::template count_gradients<Two>,
            L::count_of_key};
  }

  static Loops of(int64_t axes) {
    switch (axes) {
      case 0:
        return of<0>();
      case 3:
        return of<3>();
      case 6:
        return of<6>();
      case 9:
        return of<9>();
      default:
        return of<-1>();
    }
  }
};

// The arguments, with tables packed and windows sorted from large to small.
struct Problem {
  Problem(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order, const Tensor& offsets,
          const OptionalTensor& signals_tensor, const OptionalTensor& query_table, const OptionalTensor& key_table,
          const OptionalTensor& value_table, const OptionalTensor& bias_table, const std::vector<int64_t>& bins,
          double scale)
      : heads(query.size(1)),
        channels(query.size(2)),
        depth(whole_blocks(channels, 4)),
        groups((heads + kLanes - 1) / kLanes),
        axes(bins),
        scale(static_cast<float>(scale)),
        query(query),
        key(key),
        value(value),
        contextual(query_table.has_value()),
        biased(bias_table.has_value()),
        query_table(query_table, groups, depth),
        key_table(key_table, groups, depth),
        value_table(value_table, groups, depth),
        bias_table(bias_table, groups, 1),
        loops(Loops::of(axes.count())),
        rows(order.size(0)) {
    const int64_t* given = static_cast<const int64_t*>(order.const_data_ptr());
    for (int64_t i = 0; i < order.size(0); ++i) rows[i] = given[i * order.stride(0)];
    if (signals_tensor.has_value()) {
      signals = static_cast<const float*>(signals_tensor->const_data_ptr());
      signal_row = signals_tensor->stride(0);
      signal_axis = signals_tensor->stride(1);
    }
    read_windows(offsets);
  }

  struct Window {
    int64_t first, count;
  };

  Group group(int64_t g) const { return {g * kLanes, std::min<int64_t>(kLanes, heads - g * kLanes)}; }

  int64_t heads, channels, depth, groups;
  Axes axes;
  float scale;
  View query, key, value;
  bool contextual, biased;
  Table query_table, key_table, value_table, bias_table;
  Loops loops;
  std::vector<int64_t> rows;
  std::vector<Window> windows;
  const float* signals = nullptr;
  int64_t signal_row = 0, signal_axis = 0;

 private:
  void read_windows(const Tensor& offsets) {
    const bool wide = offsets.scalar_type() == ScalarType::Long;
    const void* data = offsets.const_data_ptr();
    const auto offset = [&](int64_t w) {
      const int64_t at = w * offsets.stride(0);
      return wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
    };
    for (int64_t w = 0; w + 1 < offsets.size(0); ++w) {
      const int64_t count = offset(w + 1) - offset(w);
      if (count > 0) windows.push_back({offset(w), count});
    }
    std::stable_sort(windows.begin(), windows.end(), [](Window a, Window b) { return a.count > b.count; });
  }
};

// Calls work(worker, item) for every item, each once, on as many threads as torch uses; threads take the next item when
// they are done with one, and each has a worker of its own.
template <class Worker, class Work>
void share_out(const Problem& problem, int64_t items, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Worker worker(problem);
    for (int64_t item = next++; item < items; item = next++) work(worker, item);
  });
}

// One window on one thread: what forward and backward have in common.
//
// Logits are stored by blocks of four queries: pair (i, j) at (i / 4 * n + j) * 4 + i % 4.
class WindowWorker {
 public:
  explicit WindowWorker(const Problem& problem) : p_(problem), queries_(problem.axes), keys_(problem.axes) {}

 protected:
  void enter(const Problem::Window& window) {
    rows_ = p_.rows.data() + window.first;
    count_ = window.count;
    padded_ = whole_blocks(count_, kBlock);
    blocks_ = padded_ / kBlock;
    if (p_.axes.count() > 0) gather_signals();
  }

  // The heads of a group of all voxels of the window, followed by zeros to whole blocks.
  Lanes* gather(const View& view, int64_t g, float scale, Scratch<Lanes>& memory) {
    Lanes* out = memory.take(padded_ * p_.depth);
    pack(view, rows_, count_, p_.group(g), p_.channels, p_.depth, scale, out);
    std::memset(out + count_ * p_.depth, 0, (padded_ - count_) * p_.depth * sizeof(Lanes));
    return out;
  }

  Lanes* zeros(int64_t count, Scratch<Lanes>& memory) {
    Lanes* out = memory.take(count);
    std::memset(out, 0, count * sizeof(Lanes));
    return out;
  }

  // The queries, or keys, that are taken together.
  struct Chunk {
    int64_t first, count, blocks;
  };

  template <class Visit>
  void for_each_chunk(const Visit& visit) const {
    for (int64_t first = 0; first < count_; first += kChunk) {
      const int64_t count = std::min(kChunk, count_ - first);
      visit(Chunk{first, count, whole_blocks(count, kBlock) / kBlock});
    }
  }

  Chunk all() const { return {0, count_, blocks_}; }

  // Below, matrices have rows for all voxels of the window, and pairs begin with the chunk's. The rows of 32 voxels at a
  // time stay in the first level of cache: 16 KiB of 16 channels.

  // Products of rows of `left`, for a chunk of queries, and of `right`, for all keys.
  void multiply_pairs(const Chunk& queries, const Lanes* left, const Lanes* right, Lanes* pairs) const {
    for_each_chunk([&](const Chunk& keys) {
      for (int64_t block = 0; block < queries.blocks; ++block) {
        Rows rows;
        for (int b = 0; b < kBlock; ++b) rows.of[b] = left + (queries.first + block * kBlock + b) * p_.depth;
        Lanes* to = pairs + (block * count_ + keys.first) * kBlock;
        multiply(rows, right + keys.first * p_.depth, keys.count, p_.depth,
                 [&](int64_t j, int b, Lanes product) { to[j * kBlock + b] = product; });
      }
    });
  }

  // out[i] += sum over all keys j of weight (i, j) * matrix[j], for the queries i of a chunk.
  void add_over_keys(const Chunk& queries, const Lanes* pairs, const Lanes* matrix, Lanes* out) const {
    for_each_chunk([&](const Chunk& keys) {
      Weights weights{{}, 1, 0, keys.count, kBlock};
      for (int64_t block = 0; block < queries.blocks; ++block) {
        Lanes* to[kBlock];
        for (int b = 0; b < kBlock; ++b) {
          weights.rows.of[b] = pairs + (block * count_ + keys.first) * kBlock + b;
          to[b] = out + (queries.first + block * kBlock + b) * p_.depth;
        }
        add_weighted_rows(weights, matrix + keys.first * p_.depth, p_.depth, to);
      }
    });
  }

  // out[j] += sum over the queries i of a chunk of weight (i, j) * matrix[i], for all keys j.
  void add_over_queries(const Chunk& queries, const Lanes* pairs, const Lanes* matrix, Lanes* out) const {
    Weights weights{{}, queries.blocks, count_ * kBlock, kBlock, 1};
    for (int64_t block = 0; block < blocks_; ++block) {
      Lanes* to[kBlock];
      for (int b = 0; b < kBlock; ++b) {
        const int64_t j = block * kBlock + b;
        weights.rows.of[b] = pairs + std::min(j, count_ - 1) * kBlock;
        to[b] = out + j * p_.depth;
      }
      add_weighted_rows(weights, matrix + queries.first * p_.depth, p_.depth, to);
    }
  }

  void add_key_terms(const Lanes* key, int64_t g, Lanes* logits) {
    for_each_chunk([&](const Chunk& keys) {
      keys_.choose(keys.first, keys.count);
      Lanes* products = products_.take(keys_.columns());
      keys_.multiply_by_table(key, p_.key_table.of_group(g), p_.depth, products, 1);
      for (int64_t j = 0; j < keys.count; ++j) {
        keys_.find_offsets<sizeof(Lanes)>(j, padded_, offsets_);
        p_.loops.add_of_key(logits + (keys.first + j) * kBlock, count_ * kBlock, padded_,
                            products + keys_.first_column(j), offsets_, p_.axes.count());
      }
    });
  }

  // Columns of what is behind the last voxel are products; histograms there are zero.
  void clear_padding(const Chunk& queries, Lanes* columns, int64_t step) const {
    const int64_t used = queries_.first_column(queries.count) * step;
    std::memset(columns + used, 0, (queries_.columns() * step - used) * sizeof(Lanes));
  }

  const Problem& p_;
  Side queries_, keys_;
  const int64_t* rows_ = nullptr;
  int64_t count_ = 0, padded_ = 0, blocks_ = 0;
  Scratch<Lanes> query_, key_, value_, logits_, products_;
  Scratch<int32_t> offset_memory_;
  int32_t* offsets_ = nullptr;

 private:
  // Signals axis by axis, once as they are and once negated: the difference of query and key is the key's negated signal
  // less the query's negated signal, with the same rounding.
  void gather_signals() {
    const int64_t axes = p_.axes.count(), stride = whole_blocks(count_, kWideFloats);
    float* signals = signals_.take(2 * axes * stride);
    float* negated = signals + axes * stride;
    for (int64_t a = 0; a < axes; ++a) {
      for (int64_t i = 0; i < stride; ++i) {
        const float s = p_.signals[rows_[i < count_ ? i : 0] * p_.signal_row + a * p_.signal_axis];
        signals[a * stride + i] = s;
        negated[a * stride + i] = -s;
      }
    }
    queries_.enter(signals, stride, count_);
    keys_.enter(negated, stride, count_);
    offsets_ = offset_memory_.take(axes * whole_blocks(padded_, kTile));
  }

  Scratch<float> signals_;
};

// Forward.
class Attention : public WindowWorker {
 public:
  using WindowWorker::WindowWorker;

  void attend(const Problem::Window& window, Tensor& out, float* lse) {
    enter(window);
    for (int64_t g = 0; g < p_.groups; ++g) attend_group(g, out, lse);
  }

 private:
  void attend_group(int64_t g, Tensor& out, float* lse) {
    const Lanes* query = gather(p_.query, g, p_.scale, query_);
    const Lanes* key = gather(p_.key, g, 1.0f, key_);
    const Lanes* value = gather(p_.value, g, 1.0f, value_);
    Lanes* logits = logits_.take(padded_ * count_);
    multiply_pairs(all(), query, key, logits);
    if (p_.contextual) add_key_terms(key, g, logits);
    Lanes* result = zeros(padded_ * p_.depth, result_);
    for_each_chunk([&](const Chunk& queries) {
      Lanes* pairs = logits + queries.first * count_;
      Lanes* products = nullptr;
      if (p_.contextual) {
        queries_.choose(queries.first, queries.count);
        products = products_.take(queries_.columns());
        queries_.multiply_by_table(query, p_.query_table.of_group(g), p_.depth, products, 1);
      }
      Lanes sums[kChunk];
      for (int64_t i = 0; i < queries.count; ++i) {
        sums[i] = attend_query(queries, i, g, pairs + i / kBlock * count_ * kBlock + i % kBlock, products, lse);
      }
      add_over_keys(queries, pairs, value, result);
      if (p_.contextual) {
        clear_padding(queries, products, 1);
        queries_.add_products({{products, 1, p_.value_table.of_group(g), result, nullptr, nullptr}}, p_.depth);
      }
      for (int64_t i = 0; i < queries.count; ++i) {
        const Lanes inverse = 1.0f / sums[i];
        Lanes* row = result + (queries.first + i) * p_.depth;
        for (int64_t c = 0; c < p_.depth; ++c) row[c] *= inverse;
      }
    });
    unpack(result, rows_, count_, p_.group(g), p_.heads, p_.channels, p_.depth, out);
  }

  // Leaves the query's probabilities, not yet divided by their sum, and their histogram in place of its products.
  Lanes attend_query(const Chunk& queries, int64_t i, int64_t g, Lanes* logits, Lanes* products, float* lse) {
    const Lanes* looked_up = p_.biased ? p_.bias_table.of_group(g) : nullptr;
    Lanes* own = nullptr;
    if (products != nullptr) {
      looked_up = own = products + queries_.first_column(i);
      queries_.find_offsets<sizeof(Lanes)>(i, count_, offsets_);
    } else if (p_.biased) {
      queries_.find_rows(queries.first + i, count_, offsets_);
    }
    const Lanes largest = p_.loops.add_of_query(logits, count_, looked_up, offsets_, p_.axes.count());
    if (own != nullptr) std::memset(own, 0, queries_.columns_of(i) * sizeof(Lanes));
    const Lanes sum = p_.loops.normalise(logits, count_, largest, own, offsets_, p_.axes.count());
    const Group group = p_.group(g);
    for (int64_t h = 0; h < group.heads; ++h) {
      lse[rows_[queries.first + i] * p_.heads + group.first_head + h] = largest[h] + std::log(sum[h]);
    }
    return sum;
  }

  Scratch<Lanes> result_;
};

// Sums of one part of the windows for the gradients of the tables of a group of heads.
struct TableGradients {
  Lanes *query, *key, *value, *bias;
};

// Results of the backward, contiguous.
struct Gradients {
  Tensor query, key, value, query_table, key_table, value_table, bias_table;
};

class Backward : public WindowWorker {
 public:
  using WindowWorker::WindowWorker;

  struct Saved {
    View grad_out, grad_lse, lse;
  };

  void differentiate(const Problem::Window& window, int64_t g, const Saved& saved, Gradients& gradients,
                     const TableGradients& tables) {
    enter(window);
    const Lanes* query = gather(p_.query, g, p_.scale, query_);
    const Lanes* key = gather(p_.key, g, 1.0f, key_);
    const Lanes* value = gather(p_.value, g, 1.0f, value_);
    const Lanes* of_out = gather(saved.grad_out, g, 1.0f, of_out_);
    gather_sums(g, saved);

    Lanes* logits = logits_.take(padded_ * count_);
    multiply_pairs(all(), query, key, logits);
    if (p_.contextual) add_key_terms(key, g, logits);
    Lanes* of_query = zeros(padded_ * p_.depth, of_query_);
    Lanes* of_key = zeros(padded_ * p_.depth, of_key_);
    Lanes* of_value = zeros(padded_ * p_.depth, of_value_);
    for_each_chunk([&](const Chunk& queries) {
      Lanes* pairs = logits + queries.first * count_;
      Lanes* probabilities = probabilities_.take(kChunk * count_);
      multiply_pairs(queries, of_out, value, probabilities);
      Lanes* products = nullptr;  // of logits and of probabilities side by side
      if (p_.contextual) {
        queries_.choose(queries.first, queries.count);
        products = products_.take(2 * queries_.columns());
        queries_.multiply_by_table(query, p_.query_table.of_group(g), p_.depth, products, 2);
        queries_.multiply_by_table(of_out, p_.value_table.of_group(g), p_.depth, products + 1, 2);
      }
      for (int64_t i = 0; i < queries.count; ++i) {
        const int64_t at = i / kBlock * count_ * kBlock + i % kBlock;
        if (p_.contextual) {
          differentiate_query(queries, i, pairs + at, probabilities + at, products);
        } else {
          differentiate_biased(queries, i, g, pairs + at, probabilities + at, tables.bias);
        }
      }
      add_over_keys(queries, pairs, key, of_query);
      add_over_queries(queries, pairs, query, of_key);
      add_over_queries(queries, probabilities, of_out, of_value);
      if (p_.contextual) {
        clear_padding(queries, products, 2);
        queries_.add_products({{products, 2, p_.query_table.of_group(g), of_query, query, tables.query},
                               {products + 1, 2, nullptr, nullptr, of_out, tables.value}},
                              p_.depth);
      }
    });
    Lanes* last_block = logits + (blocks_ - 1) * count_ * kBlock;
    for (int64_t b = count_ - (blocks_ - 1) * kBlock; b < kBlock; ++b) {
      for (int64_t j = 0; j < count_; ++j) last_block[j * kBlock + b] = Lanes{};
    }
    if (p_.contextual) add_key_gradients(logits, key, g, of_key, tables.key);
    for (int64_t c = 0; c < count_ * p_.depth; ++c) of_query[c] *= p_.scale;
    const Group group = p_.group(g);
    unpack(of_query, rows_, count_, group, p_.heads, p_.channels, p_.depth, gradients.query);
    unpack(of_key, rows_, count_, group, p_.heads, p_.channels, p_.depth, gradients.key);
    unpack(of_value, rows_, count_, group, p_.heads, p_.channels, p_.depth, gradients.value);
  }

 private:
  // Log-sum-exp and its gradient.
  void gather_sums(int64_t g, const Saved& saved) {
    lse_ = lse_memory_.take(padded_);
    of_lse_ = of_lse_memory_.take(padded_);
    pack(saved.lse, rows_, count_, p_.group(g), 1, 1, 1.0f, lse_);
    pack(saved.grad_lse, rows_, count_, p_.group(g), 1, 1, 1.0f, of_lse_);
  }

  // Leaves gradients of the query's logits, its probabilities, and the histograms of both in place of its products.
  void differentiate_query(const Chunk& queries, int64_t i, Lanes* logits, Lanes* probabilities, Lanes* products) {
    const int64_t axes = p_.axes.count(), voxel = queries.first + i;
    queries_.find_offsets<sizeof(Two)>(i, count_, offsets_);
    Two* own = reinterpret_cast<Two*>(products) + queries_.first_column(i);
    const Lanes sum = p_.loops.look_up_both(logits, probabilities, count_, own, lse_[voxel], offsets_, axes);
    std::memset(static_cast<void*>(own), 0, queries_.columns_of(i) * sizeof(Two));
    p_.loops.count_both(logits, probabilities, count_, sum - of_lse_[voxel], own, offsets_, axes);
  }

  // The same with a bias table, or without any.
  void differentiate_biased(const Chunk& queries, int64_t i, int64_t g, Lanes* logits, Lanes* probabilities,
                            Lanes* of_bias) {
    const int64_t axes = p_.axes.count(), voxel = queries.first + i;
    const Lanes* bias = p_.biased ? p_.bias_table.of_group(g) : nullptr;
    if (p_.biased) queries_.find_rows(voxel, count_, offsets_);
    const Lanes sum = p_.loops.look_up_gradients(logits, probabilities, count_, bias, lse_[voxel], offsets_, axes);
    p_.loops.count_gradients(logits, probabilities, count_, sum - of_lse_[voxel], of_bias, offsets_, axes);
  }

  // From gradients of all logits; those of queries behind the last voxel are zero.
  void add_key_gradients(const Lanes* of_logits, const Lanes* key, int64_t g, Lanes* of_key, Lanes* of_table) {
    for_each_chunk([&](const Chunk& keys) {
      keys_.choose(keys.first, keys.count);
      Lanes* histograms = zeros(keys_.columns(), products_);
      for (int64_t j = 0; j < keys.count; ++j) {
        keys_.find_offsets<sizeof(Lanes)>(j, padded_, offsets_);
        p_.loops.count_of_key(of_logits + (keys.first + j) * kBlock, count_ * kBlock, padded_,
                              histograms + keys_.first_column(j), offsets_, p_.axes.count());
      }
      keys_.add_products({{histograms, 1, p_.key_table.of_group(g), of_key, key, of_table}}, p_.depth);
    });
  }

  Scratch<Lanes> of_out_, probabilities_, of_query_, of_key_, of_value_;
  Scratch<Lanes> lse_memory_, of_lse_memory_;
  Lanes *lse_ = nullptr, *of_lse_ = nullptr;
};

std::tuple<Tensor, Tensor> voxel_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                           const Tensor& order, const Tensor& offsets, const OptionalTensor& signals,
                                           const OptionalTensor& query_table, const OptionalTensor& key_table,
                                           const OptionalTensor& value_table, const OptionalTensor& bias_table,
                                           const std::vector<int64_t>& bins, double scale) {
  const int64_t count = query.size(0), heads = query.size(1);
  Tensor out = with_large_pages(torch::stable::new_empty(query, {count, heads, query.size(2)}));
  Tensor lse = torch::stable::new_empty(query, {count, heads}, ScalarType::Float);
  if (out.numel() == 0) return {out, lse};
  const Problem problem(query, key, value, order, offsets, signals, query_table, key_table, value_table, bias_table,
                        bins, scale);
  float* lse_data = static_cast<float*>(lse.mutable_data_ptr());
  share_out<Attention>(problem, problem.windows.size(), [&](Attention& worker, int64_t item) {
    worker.attend(problem.windows[item], out, lse_data);
  });
  return {out, lse};
}

// Windows dealt to parts of about equal work, by their pairs: whatever the number of threads, the same.
std::vector<std::vector<Problem::Window>> deal(const std::vector<Problem::Window>& windows) {
  int64_t pairs = 0;
  for (const auto& window : windows) pairs += window.count * window.count;
  const int64_t parts = std::clamp<int64_t>(pairs / kPairsPerPart, 1, kMaxParts);
  std::vector<std::vector<Problem::Window>> dealt(parts);
  std::vector<int64_t> load(parts);
  for (const auto& window : windows) {
    const int64_t least = std::min_element(load.begin(), load.end()) - load.begin();
    dealt[least].push_back(window);
    load[least] += window.count * window.count;
  }
  return dealt;
}

// The sum over parts, in their order, of a table's gradient.
void add_parts(const Lanes* const sums, int64_t parts, int64_t part_step, int64_t group_step, const Problem& problem,
               int64_t channels, int64_t depth, Tensor& out) {
  torch::stable::parallel_for(0, problem.axes.rows, 8, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> row(1);
    Scratch<Lanes> memory;
    Lanes* total = memory.take(depth);
    for (row[0] = begin; row[0] < end; ++row[0]) {
      for (int64_t g = 0; g < problem.groups; ++g) {
        std::memset(total, 0, depth * sizeof(Lanes));
        for (int64_t part = 0; part < parts; ++part) {
          const Lanes* from = sums + part * part_step + g * group_step + row[0] * depth;
          for (int64_t c = 0; c < depth; ++c) total[c] += from[c];
        }
        unpack(total, row.data(), 1, problem.group(g), problem.heads, channels, depth, out);
      }
    }
  });
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SevenTensors voxel_attention_backward(const Tensor& grad_out, const Tensor& grad_lse, const Tensor& lse,
                                      const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order,
                                      const Tensor& offsets, const OptionalTensor& signals,
                                      const OptionalTensor& query_table, const OptionalTensor& key_table,
                                      const OptionalTensor& value_table, const OptionalTensor& bias_table,
                                      const std::vector<int64_t>& bins, double scale) {
  const int64_t count = query.size(0), heads = query.size(1), channels = query.size(2);
  const auto of_rows = [&] {
    return with_large_pages(torch::stable::new_empty(query, {count, heads, channels}));
  };
  const int64_t length = std::accumulate(bins.begin(), bins.end(), int64_t{0});
  const auto of_table = [&](const OptionalTensor& table) {
    return table.has_value() ? torch::stable::new_zeros(query, {length, heads, channels})
                             : torch::stable::new_zeros(query, {0});
  };
  Gradients gradients{of_rows(), of_rows(), of_rows(), of_table(query_table), of_table(key_table),
                      of_table(value_table),
                      bias_table.has_value() ? torch::stable::new_zeros(query, {length, heads})
                                             : torch::stable::new_zeros(query, {0})};
  if (query.numel() > 0) {
    const Problem problem(query, key, value, order, offsets, signals, query_table, key_table, value_table, bias_table,
                          bins, scale);
    const Backward::Saved saved{View(grad_out), View(grad_lse), View(lse)};
    const auto parts = deal(problem.windows);
    const int64_t table_step = problem.contextual ? length * problem.depth : 0;
    const int64_t group_step = problem.biased ? length : 3 * table_step;
    Scratch<Lanes> memory;
    Lanes* sums = memory.take(parts.size() * problem.groups * group_step);
    share_out<Backward>(problem, parts.size() * problem.groups, [&](Backward& worker, int64_t item) {
      Lanes* own = sums + item * group_step;
      if (own != nullptr) std::memset(own, 0, group_step * sizeof(Lanes));
      const TableGradients tables{own, own + table_step, own + 2 * table_step, problem.biased ? own : nullptr};
      for (const auto& window : parts[item / problem.groups]) {
        worker.differentiate(window, item % problem.groups, saved, gradients, tables);
      }
    });
    const int64_t part_step = problem.groups * group_step;
    if (problem.contextual) {
      Tensor* const of_tables[] = {&gradients.query_table, &gradients.key_table, &gradients.value_table};
      for (int t = 0; t < 3; ++t) {
        add_parts(sums + t * table_step, parts.size(), part_step, group_step, problem, channels, problem.depth,
                  *of_tables[t]);
      }
    }
    if (problem.biased) add_parts(sums, parts.size(), part_step, group_step, problem, 1, 1, gradients.bias_table);
  }
  return {gradients.query,     gradients.key,         gradients.value,     gradients.query_table,
          gradients.key_table, gradients.value_table, gradients.bias_table};
}

}  // namespace
}  // namespace geo3d

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("voxel_attention", TORCH_BOX(&geo3d::voxel_attention));
  m.impl("voxel_attention_backward", TORCH_BOX(&geo3d::voxel_attention_backward));
}
