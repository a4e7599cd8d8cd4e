// CPU kernels of geo3d::voxel_attention and its backward. geo3d/ops/voxel_attention.py tells what they compute and has
// checked the arguments.
//
// Windows are independent. Inside one, eight heads lie side by side (voxel_attention.h), so that one look-up serves
// eight of them. A voxel's products with the rows of a table that it can reach are computed once; its pairs then look
// them up. The value's and all gradients' tables are reached the other way: a pair adds its weight to the voxel's
// histogram, which is multiplied by the table when it is complete.

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
  decltype(&PairLoops<-1>::look_up_gradients) look_up_gradients;
  decltype(&PairLoops<-1>::count_gradients) count_gradients;
  decltype(&PairLoops<-1>::count_of_key) count_of_key;

  template <int kAxes>
  static Loops of() {
    using L = PairLoops<kAxes>;
    return {L::add_of_key, L::add_of_query, L::normalise, L::look_up_gradients, L::count_gradients, L::count_of_key};
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

  // Products of rows of `left` (as queries) and of `right` (as keys).
  void multiply_pairs(const Lanes* left, const Lanes* right, Lanes* out) const {
    for (int64_t block = 0; block < blocks_; ++block, out += count_ * kBlock) {
      multiply(rows_of_block(left, block), right, count_, p_.depth,
               [&](int64_t j, int b, Lanes product) { out[j * kBlock + b] = product; });
    }
  }

  Rows rows_of_block(const Lanes* matrix, int64_t block) const {
    Rows rows;
    for (int b = 0; b < kBlock; ++b) rows.of[b] = matrix + (block * kBlock + b) * p_.depth;
    return rows;
  }

  // out[i] += sum over j of weight (i, j) * matrix[j], for the queries i of a block.
  void add_over_keys(const Lanes* pairs, int64_t block, const Lanes* matrix, Lanes* out) const {
    Weights weights{{}, 1, 0, count_, kBlock};
    Lanes* to[kBlock];
    for (int b = 0; b < kBlock; ++b) {
      weights.rows.of[b] = pairs + block * count_ * kBlock + b;
      to[b] = out + (block * kBlock + b) * p_.depth;
    }
    add_weighted_rows(weights, matrix, p_.depth, to);
  }

  // out[j] += sum over i of weight (i, j) * matrix[i], for all keys j.
  void add_over_queries(const Lanes* pairs, const Lanes* matrix, Lanes* out) const {
    for (int64_t block = 0; block < blocks_; ++block) {
      Weights weights{{}, blocks_, count_ * kBlock, kBlock, 1};
      Lanes* to[kBlock];
      for (int b = 0; b < kBlock; ++b) {
        const int64_t j = block * kBlock + b;
        weights.rows.of[b] = pairs + std::min(j, count_ - 1) * kBlock;
        to[b] = out + j * p_.depth;
      }
      add_weighted_rows(weights, matrix, p_.depth, to);
    }
  }

  void add_key_terms(const Lanes* key, int64_t g, Lanes* logits) {
    Lanes* products = products_.take(padded_ * columns());
    keys_.multiply_by_table(key, p_.key_table.of_group(g), p_.depth, products);
    for (int64_t j = 0; j < count_; ++j) {
      keys_.find_offsets(j, padded_, offsets_);
      p_.loops.add_of_key(logits + j * kBlock, count_ * kBlock, padded_, products + j * keys_.columns(),
                          offsets_, p_.axes.count());
    }
  }

  int64_t columns() const { return std::max(queries_.columns(), keys_.columns()); }

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
    if (p_.contextual) {
      queries_.sort(signals, stride, count_);
      keys_.sort(negated, stride, count_);
    } else {
      queries_.look_up_directly(signals, stride, count_);
    }
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
    multiply_pairs(query, key, logits);
    Lanes* products = nullptr;
    if (p_.contextual) {
      add_key_terms(key, g, logits);
      products = products_.take(padded_ * columns());
      queries_.multiply_by_table(query, p_.query_table.of_group(g), p_.depth, products);
    }
    Lanes* result = zeros(padded_ * p_.depth, result_);
    Lanes* sums = sums_.take(padded_);
    for (int64_t block = 0; block < blocks_; ++block) {
      for (int64_t i = block * kBlock; i < std::min(count_, (block + 1) * kBlock); ++i) {
        const Lanes* bias = p_.biased ? p_.bias_table.of_group(g) : nullptr;
        sums[i] = attend_query(i, g, logits + block * count_ * kBlock + i % kBlock, products, bias, lse);
      }
      add_over_keys(logits, block, value, result);
    }
    if (p_.contextual) {
      const int64_t columns = queries_.columns();
      std::memset(products + count_ * columns, 0, (padded_ - count_) * columns * sizeof(Lanes));
      queries_.add_histograms_times_table(products, p_.value_table.of_group(g), p_.depth, result);
    }
    for (int64_t i = 0; i < count_; ++i) {
      const Lanes inverse = 1.0f / sums[i];
      for (int64_t c = 0; c < p_.depth; ++c) result[i * p_.depth + c] *= inverse;
    }
    unpack(result, rows_, count_, p_.group(g), p_.heads, p_.channels, p_.depth, out);
  }

  // Leaves the query's probabilities, not yet divided by their sum, and their histogram in place of its products.
  Lanes attend_query(int64_t i, int64_t g, Lanes* logits, Lanes* products, const Lanes* bias, float* lse) {
    if (p_.axes.count() > 0) queries_.find_offsets(i, count_, offsets_);
    Lanes* own = products == nullptr ? nullptr : products + i * queries_.columns();
    const Lanes* looked_up = products == nullptr ? bias : own;
    const Lanes largest = p_.loops.add_of_query(logits, count_, looked_up, offsets_, p_.axes.count());
    if (own != nullptr) std::memset(own, 0, queries_.columns() * sizeof(Lanes));
    const Lanes sum = p_.loops.normalise(logits, count_, largest, own, offsets_, p_.axes.count());
    const Group group = p_.group(g);
    for (int64_t h = 0; h < group.heads; ++h) {
      lse[rows_[i] * p_.heads + group.first_head + h] = largest[h] + std::log(sum[h]);
    }
    return sum;
  }

  Scratch<Lanes> result_, sums_;
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
    Lanes* probabilities = probabilities_.take(padded_ * count_);
    multiply_pairs(query, key, logits);
    multiply_pairs(of_out, value, probabilities);
    Lanes *products = nullptr, *value_products = nullptr;
    if (p_.contextual) {
      add_key_terms(key, g, logits);
      products = products_.take(padded_ * columns());
      value_products = value_products_.take(padded_ * columns());
      queries_.multiply_by_table(query, p_.query_table.of_group(g), p_.depth, products);
      queries_.multiply_by_table(of_out, p_.value_table.of_group(g), p_.depth, value_products);
    }
    Lanes* of_query = zeros(padded_ * p_.depth, of_query_);
    for (int64_t block = 0; block < blocks_; ++block) {
      for (int64_t i = block * kBlock; i < std::min(count_, (block + 1) * kBlock); ++i) {
        const int64_t first = block * count_ * kBlock + i % kBlock;
        differentiate_query(i, g, logits + first, probabilities + first, products, value_products, tables.bias);
      }
      add_over_keys(logits, block, key, of_query);
    }
    Lanes* of_key = zeros(padded_ * p_.depth, of_key_);
    Lanes* of_value = zeros(padded_ * p_.depth, of_value_);
    add_over_queries(logits, query, of_key);
    add_over_queries(probabilities, of_out, of_value);
    if (p_.contextual) {
      clear_padding(products, queries_.columns());
      clear_padding(value_products, queries_.columns());
      queries_.add_histograms_times_table(products, p_.query_table.of_group(g), p_.depth, of_query);
      queries_.add_histograms_times_voxels(products, query, p_.depth, tables.query);
      queries_.add_histograms_times_voxels(value_products, of_out, p_.depth, tables.value);
      count_by_key(logits, products);
      keys_.add_histograms_times_table(products, p_.key_table.of_group(g), p_.depth, of_key);
      keys_.add_histograms_times_voxels(products, key, p_.depth, tables.key);
    }
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
  void differentiate_query(int64_t i, int64_t g, Lanes* logits, Lanes* probabilities, Lanes* products,
                           Lanes* value_products, Lanes* of_bias) {
    const int64_t axes = p_.axes.count(), columns = queries_.columns();
    if (axes > 0) queries_.find_offsets(i, count_, offsets_);
    const Lanes* looked_up = p_.biased ? p_.bias_table.of_group(g) : nullptr;
    Lanes *histogram = of_bias, *value_histogram = nullptr;
    if (products != nullptr) {
      looked_up = histogram = products + i * columns;
      value_histogram = value_products + i * columns;
    }
    const Lanes sum = p_.loops.look_up_gradients(logits, probabilities, count_, looked_up, value_histogram, lse_[i],
                                                 offsets_, axes);
    if (products != nullptr) {
      std::memset(histogram, 0, columns * sizeof(Lanes));
      std::memset(value_histogram, 0, columns * sizeof(Lanes));
    }
    p_.loops.count_gradients(logits, probabilities, count_, sum - of_lse_[i], histogram, value_histogram, offsets_, axes);
  }

  void count_by_key(const Lanes* of_logits, Lanes* histograms) {
    const int64_t columns = keys_.columns();
    std::memset(histograms, 0, padded_ * columns * sizeof(Lanes));
    for (int64_t j = 0; j < count_; ++j) {
      keys_.find_offsets(j, padded_, offsets_);
      p_.loops.count_of_key(of_logits + j * kBlock, count_ * kBlock, count_, histograms + j * columns, offsets_,
                            p_.axes.count());
    }
  }

  void clear_padding(Lanes* histograms, int64_t columns) const {
    std::memset(histograms + count_ * columns, 0, (padded_ - count_) * columns * sizeof(Lanes));
  }

  Scratch<Lanes> of_out_, probabilities_, value_products_, of_query_, of_key_, of_value_;
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
    // A row more than the table has, as rows are added in pairs.
    const int64_t table_step = problem.contextual ? (length + 1) * problem.depth : 0;
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
