// Arithmetic of the CPU kernels of voxel attention: eight heads side by side in the lanes of a vector.
//
// Compiler vector types (GCC, Clang) become whatever the target has: two registers of four floats, one of eight. All
// else is plain C++. Matrices below are row-major with elements of eight lanes; a product acts on each lane alone.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace geo3d {

constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

// Voxels are taken in blocks of so many; all matrices are padded to whole blocks.
constexpr int kBlock = 4;

inline __attribute__((always_inline)) Lanes splat(float value) { return Lanes{} + value; }

// Two neighbouring channels where registers hold sixteen floats, one elsewhere: what the matrix products below work on.
#if defined(__AVX512F__) && defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define GEO3D_WIDE 2
constexpr int kWide = 2;
typedef float Wide __attribute__((vector_size(4 * kLanes * kWide)));

inline __attribute__((always_inline)) Wide repeat(const Lanes& lanes) {
  return __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
}

inline __attribute__((always_inline)) Lanes sum_of_channels(Wide wide) {
  return __builtin_shufflevector(wide, wide, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(wide, wide, 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
#define GEO3D_WIDE 1
constexpr int kWide = 1;
typedef Lanes Wide;

inline __attribute__((always_inline)) Wide repeat(const Lanes& lanes) { return lanes; }

inline __attribute__((always_inline)) Lanes sum_of_channels(Wide wide) { return wide; }
#endif

constexpr int kWideFloats = kLanes * kWide;
typedef int32_t WideRows __attribute__((vector_size(4 * kWideFloats)));

inline __attribute__((always_inline)) Wide load_wide(const Lanes* channels) {
  Wide wide;
  std::memcpy(&wide, channels, sizeof wide);
  return wide;
}

inline __attribute__((always_inline)) void store_wide(Lanes* channels, Wide wide) {
  std::memcpy(channels, &wide, sizeof wide);
}

inline __attribute__((always_inline)) Lanes maximum(Lanes a, Lanes b) { return a > b ? a : b; }

// Whether eight vectors can be transposed without going through memory.
#if defined(__AVX2__) && defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
constexpr bool kTransposes = true;

// Rows become columns.
inline __attribute__((always_inline)) void transpose(Lanes (&rows)[kLanes]) {
  Lanes pairs[kLanes], fours[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      fours[i + 2 * k] = __builtin_shufflevector(pairs[i + k], pairs[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * k + 1] = __builtin_shufflevector(pairs[i + k], pairs[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = __builtin_shufflevector(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#else
constexpr bool kTransposes = false;

inline void transpose(Lanes (&)[kLanes]) {}
#endif

// e^x to 2 units in the last place, for x up to 88; below -87 the smallest normal number. NaN stays NaN.
inline __attribute__((always_inline)) Lanes exponential(Lanes x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are a whole number
  const Lanes turns = shifted - 12582912.0f;
  const Lanes r = (x - turns * 0.693145751953125f) - turns * 1.42860677e-6f;
  Lanes y = r * 1.3888889e-3f + 8.3333338e-3f;
  y = y * r + 4.1666668e-2f;
  y = y * r + 1.6666667e-1f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  IntLanes bits, power;
  std::memcpy(&power, &shifted, sizeof power);
  std::memcpy(&bits, &y, sizeof bits);
  bits += power << 23;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// The rows of one block.
struct Rows {
  const Lanes* of[kBlock];
};

// A block of rows times kRows rows of a table, all of `depth`, a multiple of 4: calls store(row, b, product).
template <int kRows, class Store>
inline __attribute__((always_inline)) void multiply_rows(const Rows& rows, const Lanes* table, int64_t depth,
                                                         const Store& store) {
  Wide sums[kRows][kBlock];
  const auto for_each_sum = [](const auto& visit) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < kBlock; ++b) visit(r, b);
    }
  };
  for_each_sum([&](int r, int b) { sums[r][b] = load_wide(rows.of[b]) * load_wide(table + r * depth); });
  for (int64_t c = kWide; c < depth; c += kWide) {
    for_each_sum([&](int r, int b) { sums[r][b] += load_wide(rows.of[b] + c) * load_wide(table + r * depth + c); });
  }
  for_each_sum([&](int r, int b) { store(r, b, sum_of_channels(sums[r][b])); });
}

// The same for any number of rows.
template <class Store>
inline void multiply(const Rows& rows, const Lanes* table, int64_t count, int64_t depth, const Store& store) {
  constexpr int kAtOnce = kWide == 2 ? 5 : 3;  // with elements and a factor: 25 of 32 registers, or 16 of 16
  int64_t done = 0;
  for (; done + kAtOnce <= count; done += kAtOnce) {
    multiply_rows<kAtOnce>(rows, table + done * depth, depth,
                           [&](int r, int b, Lanes sum) { store(done + r, b, sum); });
  }
  if (done + 2 <= count) {
    multiply_rows<2>(rows, table + done * depth, depth, [&](int r, int b, Lanes sum) { store(done + r, b, sum); });
    done += 2;
  }
  for (; done < count; ++done) {
    multiply_rows<1>(rows, table + done * depth, depth, [&](int, int b, Lanes sum) { store(done, b, sum); });
  }
}

// Where the weights of a block of four rows lie: element (b, outer, inner) at of[b] + outer * outer_step + inner * inner_step.
struct Weights {
  Rows rows;
  int64_t outer, outer_step, inner, inner_step;
};

// kColumns columns of add_weighted_rows.
template <int kColumns>
inline __attribute__((always_inline)) void add_weighted_columns(const Weights& weights, const Lanes* matrix,
                                                                int64_t depth, Lanes* const (&out)[kBlock],
                                                                int64_t column) {
  constexpr int kVectors = kColumns / kWide;
  Wide sums[kBlock][kVectors];
  for (int b = 0; b < kBlock; ++b) {
    for (int v = 0; v < kVectors; ++v) sums[b][v] = load_wide(out[b] + column + v * kWide);
  }
  const Lanes* row = matrix + column;
  for (int64_t o = 0; o < weights.outer; ++o) {
    for (int64_t k = 0; k < weights.inner; ++k, row += depth) {
      Wide elements[kVectors];
      for (int v = 0; v < kVectors; ++v) elements[v] = load_wide(row + v * kWide);
      for (int b = 0; b < kBlock; ++b) {
        const Wide weight = repeat(weights.rows.of[b][o * weights.outer_step + k * weights.inner_step]);
        for (int v = 0; v < kVectors; ++v) sums[b][v] += weight * elements[v];
      }
    }
  }
  for (int b = 0; b < kBlock; ++b) {
    for (int v = 0; v < kVectors; ++v) store_wide(out[b] + column + v * kWide, sums[b][v]);
  }
}

// out[b] += sum of weight(b, k) * matrix[k], over k = outer * inner rows of `depth`, a multiple of 4.
inline void add_weighted_rows(const Weights& weights, const Lanes* matrix, int64_t depth, Lanes* const (&out)[kBlock]) {
  int64_t column = 0;
  if constexpr (kWide == 2) {  // 16 sums of 32 registers
    for (; column + 8 <= depth; column += 8) add_weighted_columns<8>(weights, matrix, depth, out, column);
    if (column < depth) add_weighted_columns<4>(weights, matrix, depth, out, column);
  } else {  // 12 of 16
    for (; depth - column == 3 || depth - column > 4; column += 3) {
      add_weighted_columns<3>(weights, matrix, depth, out, column);
    }
    for (; column < depth; column += 2) add_weighted_columns<2>(weights, matrix, depth, out, column);
  }
}

// kColumns columns of add_outer_products.
template <int kColumns>
inline __attribute__((always_inline)) void add_outer_columns(const Rows weights, int64_t step, const Rows& rows,
                                                             int64_t count, int64_t depth, Lanes* out) {
  constexpr int kVectors = kColumns / kWide;
  Wide elements[kBlock][kVectors];
  for (int b = 0; b < kBlock; ++b) {
    for (int v = 0; v < kVectors; ++v) elements[b][v] = load_wide(rows.of[b] + v * kWide);
  }
  for (int64_t r = 0; r < count; ++r, out += depth) {
    Wide factors[kBlock];
    for (int b = 0; b < kBlock; ++b) factors[b] = repeat(weights.of[b][r * step]);
    for (int v = 0; v < kVectors; ++v) {
      Wide sum = load_wide(out + v * kWide);
      for (int b = 0; b < kBlock; ++b) sum += factors[b] * elements[b][v];
      store_wide(out + v * kWide, sum);
    }
  }
}

// out[r] += sum over b of weights[b][r * step] * rows[b], for `count` rows r of `depth`, a multiple of 4.
inline void add_outer_products(const Rows& weights, int64_t step, const Rows& rows, int64_t count, int64_t depth,
                               Lanes* out) {
  constexpr int kMost = kWide == 2 ? 8 : 2;  // with factors and sums: 24 of 32 registers, or 14 of 16
  constexpr int kLeast = kWide == 2 ? 4 : 2;
  const auto from = [&](int64_t column) {
    Rows shifted;
    for (int b = 0; b < kBlock; ++b) shifted.of[b] = rows.of[b] + column;
    return shifted;
  };
  int64_t column = 0;
  for (; column + kMost <= depth; column += kMost) {
    add_outer_columns<kMost>(weights, step, from(column), count, depth, out + column);
  }
  for (; column < depth; column += kLeast) {
    add_outer_columns<kLeast>(weights, step, from(column), count, depth, out + column);
  }
}

// Two vectors side by side: what the backward looks up and counts for a query, of its logits and of its probabilities.
struct Two {
  Wide parts[2 / kWide];

  inline __attribute__((always_inline)) Two& operator+=(const Two& other) {
    for (int i = 0; i < 2 / kWide; ++i) parts[i] += other.parts[i];
    return *this;
  }

};
static_assert(sizeof(Two) == 2 * sizeof(Lanes), "rows of two have no gaps");

#if GEO3D_WIDE == 2
inline __attribute__((always_inline)) Two make_two(Lanes first, Lanes second) {
  return {{__builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}};
}

inline __attribute__((always_inline)) Lanes first_of(const Two& two) {
  return __builtin_shufflevector(two.parts[0], two.parts[0], 0, 1, 2, 3, 4, 5, 6, 7);
}

inline __attribute__((always_inline)) Lanes second_of(const Two& two) {
  return __builtin_shufflevector(two.parts[0], two.parts[0], 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
inline __attribute__((always_inline)) Two make_two(Lanes first, Lanes second) { return {{first, second}}; }

inline __attribute__((always_inline)) Lanes first_of(const Two& two) { return two.parts[0]; }

inline __attribute__((always_inline)) Lanes second_of(const Two& two) { return two.parts[1]; }
#endif

// What one voxel looks up for its pairs: byte offsets of rows of eight lanes, or of two times eight, in tiles of kTile
// pairs, axis by axis.
constexpr int kTile = 64;

template <class Row>
inline __attribute__((always_inline)) const Row& at(const Row* base, int32_t offset) {
  return *reinterpret_cast<const Row*>(reinterpret_cast<const char*>(base) + offset);
}

template <class Row>
inline __attribute__((always_inline)) Row& at(Row* base, int32_t offset) {
  return *reinterpret_cast<Row*>(reinterpret_cast<char*>(base) + offset);
}

// Calls pair(j, offsets) for all pairs; the offset of axis a is offsets[a * kTile].
template <class Pair>
inline __attribute__((always_inline)) void for_each_pair(const int32_t* offsets, int64_t axes, int64_t count,
                                                         const Pair& pair) {
  for (int64_t first = 0; first < count; first += kTile, offsets += axes * kTile) {
    const int64_t tile = count - first < kTile ? count - first : kTile;
    for (int64_t j = 0; j < tile; ++j) pair(first + j, offsets + j);
  }
}

// The same for pairs four at a time, of which there are whole ones: calls four(j / 4, offsets).
template <class Four>
inline __attribute__((always_inline)) void for_each_four(const int32_t* offsets, int64_t axes, int64_t count,
                                                         const Four& four) {
  static_assert(kTile % kBlock == 0, "tiles have whole fours");
  for (int64_t first = 0; first < count; first += kTile, offsets += axes * kTile) {
    const int64_t tile = count - first < kTile ? count - first : kTile;
    for (int64_t j = 0; j < tile; j += kBlock) four((first + j) / kBlock, offsets + j);
  }
}

// The inner loops over pairs, for a number of axes known to the compiler, or any number (kAxes = -1).
template <int kAxes>
struct PairLoops {
  template <class Row>
  static inline __attribute__((always_inline)) Row look_up(Row sum, const Row* row, const int32_t* offset,
                                                           int64_t any_axes) {
    const int64_t axes = kAxes < 0 ? any_axes : kAxes;
    for (int64_t a = 0; a < axes; ++a) sum += at(row, offset[a * kTile]);
    return sum;
  }

  template <class Row>
  static inline __attribute__((always_inline)) void count(Row* row, const int32_t* offset, const Row& weight,
                                                          int64_t any_axes) {
    const int64_t axes = kAxes < 0 ? any_axes : kAxes;
    for (int64_t a = 0; a < axes; ++a) at(row, offset[a * kTile]) += weight;
  }

  // Logits of a key: those of four queries follow each other, and then those of the next four block_step behind.
  static void add_of_key(Lanes* logits, int64_t block_step, int64_t count, const Lanes* row, const int32_t* offsets,
                         int64_t axes) {
    for_each_four(offsets, axes, count, [&](int64_t block, const int32_t* offset) {
      Lanes* four = logits + block * block_step;
#pragma GCC unroll 4
      for (int b = 0; b < kBlock; ++b) four[b] = look_up(four[b], row, offset + b, axes);
    });
  }

  // Logits of a query, pairs kBlock apart: returns the largest.
  static Lanes add_of_query(Lanes* logits, int64_t count, const Lanes* row, const int32_t* offsets, int64_t axes) {
    Lanes largest = splat(-__builtin_inff());
    for_each_pair(offsets, axes, count, [&](int64_t j, const int32_t* offset) {
      const Lanes logit = look_up(logits[j * kBlock], row, offset, axes);
      logits[j * kBlock] = logit;
      largest = maximum(logit, largest);
    });
    return largest;
  }

  // Logits become e^(logit - largest), which is counted in the histogram (where there is one); returns their sum.
  static Lanes normalise(Lanes* logits, int64_t count, Lanes largest, Lanes* histogram, const int32_t* offsets,
                         int64_t axes) {
    Lanes sum = {};
    if (histogram == nullptr) {
      for (int64_t j = 0; j < count; ++j) {
        const Lanes p = exponential(logits[j * kBlock] - largest);
        logits[j * kBlock] = p;
        sum += p;
      }
      return sum;
    }
    for_each_pair(offsets, axes, count, [&](int64_t j, const int32_t* offset) {
      const Lanes p = exponential(logits[j * kBlock] - largest);
      logits[j * kBlock] = p;
      sum += p;
      PairLoops::count(histogram, offset, p, axes);
    });
    return sum;
  }

  // Backward of a query, first step: logits and gradients of probabilities, both without their look-ups, become complete
  // gradients and probabilities, in this order. Rows are of logits alone, which the bias table has, or of both. Returns the
  // sum over pairs of their products.
  template <class Row>
  static Lanes look_up_gradients(Lanes* logits, Lanes* of_probabilities, int64_t count, const Row* row, Lanes lse,
                                 const int32_t* offsets, int64_t axes) {
    Lanes sum = {};
    for_each_pair(offsets, axes, count, [&](int64_t j, const int32_t* offset) {
      Lanes logit = logits[j * kBlock], of_p = of_probabilities[j * kBlock];
      if constexpr (std::is_same_v<Row, Two>) {
        const Two both = look_up(make_two(logit, of_p), row, offset, axes);
        logit = first_of(both);
        of_p = second_of(both);
      } else {
        logit = look_up(logit, row, offset, axes);
      }
      const Lanes p = exponential(logit - lse);
      of_probabilities[j * kBlock] = p;
      logits[j * kBlock] = of_p;
      sum += p * of_p;
    });
    return sum;
  }

  // Second step: gradients of probabilities become gradients of logits, which are counted, those of both where rows are.
  template <class Row>
  static void count_gradients(Lanes* of_probabilities, const Lanes* probabilities, int64_t count, Lanes common,
                              Row* histogram, const int32_t* offsets, int64_t axes) {
    for_each_pair(offsets, axes, count, [&](int64_t j, const int32_t* offset) {
      const Lanes p = probabilities[j * kBlock];
      const Lanes of_logit = p * (of_probabilities[j * kBlock] - common);
      of_probabilities[j * kBlock] = of_logit;
      if constexpr (std::is_same_v<Row, Two>) {
        PairLoops::count(histogram, offset, make_two(of_logit, p), axes);
      } else {
        PairLoops::count(histogram, offset, of_logit, axes);
      }
    });
  }

  // `count` whole fours, of which those behind the last voxel are zero.
  static void count_of_key(const Lanes* weights, int64_t block_step, int64_t count, Lanes* row,
                           const int32_t* offsets, int64_t axes) {
    for_each_four(offsets, axes, count, [&](int64_t block, const int32_t* offset) {
      const Lanes* four = weights + block * block_step;
#pragma GCC unroll 4
      for (int b = 0; b < kBlock; ++b) PairLoops::count(row, offset + b, four[b], axes);
    });
  }
};

}  // namespace geo3d
