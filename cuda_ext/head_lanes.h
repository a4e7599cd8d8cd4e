// Tensors of the CPU kernels of voxel attention with their heads in the lanes of vectors: how they get there and back.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <type_traits>
#include <vector>

#include "voxel_attention.h"

namespace geo3d {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t whole_blocks(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

// Memory that is kept until more is needed, not initialised, aligned for vectors.
template <typename T>
class Scratch {
 public:
  T* take(int64_t count) {
    if (count > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
      size_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// A tensor (rows, heads, channels) of any floating dtype and strides.
struct View {
  const void* data;
  int64_t row, head, channel;
  ScalarType dtype;

  explicit View(const Tensor& tensor)
      : data(tensor.const_data_ptr()),
        row(tensor.stride(0)),
        head(tensor.stride(1)),
        channel(tensor.dim() > 2 ? tensor.stride(2) : 0),
        dtype(tensor.scalar_type()) {}
};

// The heads that lie in the lanes of one vector.
struct Group {
  int64_t first_head, heads;
};

// Rows of a window may lie anywhere: ask for those that come soon.
constexpr int64_t kAhead = 6;

template <bool kWrite, typename Scalar>
inline void prefetch(const Scalar* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Scalar);
  for (int64_t at = 0; at < count; at += kLine) __builtin_prefetch(row + at, kWrite);
}

// Eight values that follow each other, as floats.
template <typename Scalar>
inline Lanes load_lanes(const Scalar* from) {
  Lanes lanes;
  if constexpr (std::is_same_v<Scalar, float>) {
    std::memcpy(&lanes, from, sizeof lanes);
  } else {
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(from[i]);
  }
  return lanes;
}

template <typename Scalar>
inline void store_lanes(Scalar* to, Lanes lanes) {
  if constexpr (std::is_same_v<Scalar, float>) {
    std::memcpy(to, &lanes, sizeof lanes);
  } else {
    for (int i = 0; i < kLanes; ++i) to[i] = static_cast<Scalar>(lanes[i]);
  }
}

template <typename Scalar>
void pack_as(const View& view, const int64_t* rows, int64_t count, Group group, int64_t channels, int64_t depth,
             float scale, Lanes* out) {
  const Scalar* data = static_cast<const Scalar*>(view.data) + group.first_head * view.head;
  const int64_t transposed = kTransposes && view.channel == 1 ? channels / kLanes * kLanes : 0;
  for (int64_t i = 0; i < count; ++i, out += depth) {
    if (i + kAhead < count) prefetch<false>(data + rows[i + kAhead] * view.row, group.heads * view.head);
    const Scalar* from = data + rows[i] * view.row;
    for (int64_t c = 0; c < transposed; c += kLanes) {
      Lanes block[kLanes];
#pragma GCC unroll 8
      for (int h = 0; h < kLanes; ++h) block[h] = h < group.heads ? load_lanes(from + h * view.head + c) : Lanes{};
      transpose(block);
      for (int k = 0; k < kLanes; ++k) out[c + k] = block[k] * scale;
    }
    for (int64_t c = transposed; c < depth; ++c) {
      out[c] = Lanes{};
      for (int64_t h = 0; c < channels && h < group.heads; ++h) {
        out[c][h] = static_cast<float>(from[h * view.head + c * view.channel]) * scale;
      }
    }
  }
}

// Rows of a tensor, as (count, depth) vectors of eight heads; lanes and channels that the tensor does not have are zero.
inline void pack(const View& view, const int64_t* rows, int64_t count, Group group, int64_t channels, int64_t depth,
          float scale, Lanes* out) {
  switch (view.dtype) {
    case ScalarType::Float:
      return pack_as<float>(view, rows, count, group, channels, depth, scale, out);
    case ScalarType::BFloat16:
      return pack_as<BFloat16>(view, rows, count, group, channels, depth, scale, out);
    case ScalarType::Half:
      return pack_as<Half>(view, rows, count, group, channels, depth, scale, out);
    case ScalarType::Double:  // log-sum-exp may be
      return pack_as<double>(view, rows, count, group, channels, depth, scale, out);
    default:
      STD_TORCH_CHECK(false, "voxel_attention has no CPU kernel for this dtype");
  }
}

template <typename Scalar>
void unpack_as(const Lanes* in, const int64_t* rows, int64_t count, Group group, int64_t heads, int64_t channels,
               int64_t depth, Scalar* out) {
  const int64_t transposed = kTransposes ? channels / kLanes * kLanes : 0;
  for (int64_t i = 0; i < count; ++i, in += depth) {
    if (i + kAhead < count) {
      prefetch<true>(out + (rows[i + kAhead] * heads + group.first_head) * channels, group.heads * channels);
    }
    Scalar* to = out + (rows[i] * heads + group.first_head) * channels;
    for (int64_t c = 0; c < transposed; c += kLanes) {
      Lanes block[kLanes];
      for (int k = 0; k < kLanes; ++k) block[k] = in[c + k];
      transpose(block);
#pragma GCC unroll 8
      for (int h = 0; h < kLanes; ++h) {
        if (h < group.heads) store_lanes(to + h * channels + c, block[h]);
      }
    }
    for (int64_t h = 0; h < group.heads; ++h) {
      for (int64_t c = transposed; c < channels; ++c) to[h * channels + c] = static_cast<Scalar>(in[c][h]);
    }
  }
}

// The other way, into a contiguous tensor.
inline void unpack(const Lanes* in, const int64_t* rows, int64_t count, Group group, int64_t heads, int64_t channels,
            int64_t depth, Tensor& out) {
  switch (out.scalar_type()) {
    case ScalarType::Float:
      return unpack_as(in, rows, count, group, heads, channels, depth, static_cast<float*>(out.mutable_data_ptr()));
    case ScalarType::BFloat16:
      return unpack_as(in, rows, count, group, heads, channels, depth, static_cast<BFloat16*>(out.mutable_data_ptr()));
    case ScalarType::Half:
      return unpack_as(in, rows, count, group, heads, channels, depth, static_cast<Half*>(out.mutable_data_ptr()));
    default:
      STD_TORCH_CHECK(false, "voxel_attention has no CPU kernel for this dtype");
  }
}

// A table (R, H, D) with its heads in lanes: R rows of `depth` for each group of heads.
class Table {
 public:
  Table(const OptionalTensor& tensor, int64_t groups, int64_t depth) {
    if (!tensor.has_value()) return;
    const int64_t length = tensor->size(0), heads = tensor->size(1);
    const int64_t channels = tensor->dim() > 2 ? tensor->size(2) : 1;
    std::vector<int64_t> rows(length);
    std::iota(rows.begin(), rows.end(), 0);
    step_ = length * depth;
    data_ = memory_.take(groups * step_);
    for (int64_t g = 0; g < groups; ++g) {
      const Group group{g * kLanes, std::min<int64_t>(kLanes, heads - g * kLanes)};
      pack(View(*tensor), rows.data(), length, group, channels, depth, 1.0f, data_ + g * step_);
    }
  }

  const Lanes* of_group(int64_t group) const { return data_ + group * step_; }

 private:
  Scratch<Lanes> memory_;
  Lanes* data_ = nullptr;
  int64_t step_ = 0;
};

}  // namespace geo3d
