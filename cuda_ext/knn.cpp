// CPU kernel of geo3d::knn. geo3d/ops/knn.py tells what it computes and has checked the arguments.
//
// Compiled without contraction of products and sums (see CMakeLists.txt): distances are the reference's to the last bit.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

namespace {

using torch::stable::Tensor;

constexpr int64_t kQueriesPerTask = 256;
constexpr int kLeafSize = 16;  // points that are looked at together
constexpr int64_t kFew = 16;   // points of a scene that needs no tree
constexpr int64_t kFewForOne = 64;  // the same where one neighbour is asked for
constexpr int64_t kNobody = std::numeric_limits<int64_t>::max();  // a row, after all others

// Squared distances are of type Real.
template <typename Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

template <typename Real>
struct Point {
  Real xyz[3];
};

// The k nearest so far, ascending by distance and then by index.
template <typename Real>
class Nearest {
 public:
  explicit Nearest(int64_t k) : k_(k), distance_(k), index_(k) {}

  void clear() {
    std::fill(distance_.begin(), distance_.end(), kInfinity<Real>);
    std::fill(index_.begin(), index_.end(), kNobody);
  }

  int64_t k() const { return k_; }
  Real worst() const { return distance_[k_ - 1]; }

  void offer(Real distance, int64_t index) {
    if (distance == worst() && index > index_[k_ - 1]) return;
    int64_t place = k_ - 1;
    for (; place > 0; --place) {
      if (distance_[place - 1] < distance || (distance_[place - 1] == distance && index_[place - 1] < index)) break;
      distance_[place] = distance_[place - 1];
      index_[place] = index_[place - 1];
    }
    distance_[place] = distance;
    index_[place] = index;
  }

  Real distance(int64_t place) const { return distance_[place]; }
  int64_t index(int64_t place) const { return index_[place] == kNobody ? -1 : index_[place]; }

 private:
  int64_t k_;
  std::vector<Real> distance_;
  std::vector<int64_t> index_;
};

// A balanced k-d tree over the points of one scene. Nodes hold tight boxes: the distance to a box, computed as that to a
// point, never exceeds the computed distance to any point inside, since rounding keeps order. So the search is exact.
template <typename Real>
class Tree {
 public:
  Tree(const float* points, int64_t first, int64_t last) {
    if (first == last) return;
    STD_TORCH_CHECK(last - first < INT32_MAX, "knn: a scene has at most 2^31 - 2 points, got ", last - first);
    first_row_ = first;
    std::vector<Entry> entries(last - first);
    for (int64_t row = first; row < last; ++row) {
      const float* xyz = points + 3 * row;
      entries[row - first] = {{xyz[0], xyz[1], xyz[2]}, static_cast<int32_t>(row - first)};
    }
    leaves_.reserve((last - first) / kLeafSize + 1);
    nodes_.reserve(2 * leaves_.capacity());
    build(entries.data(), entries.data() + entries.size());
  }

  void search(const Point<Real>& query, Nearest<Real>& nearest) const {
    if (nodes_.empty()) return;
    std::array<std::pair<int32_t, Real>, 64> waiting;  // as deep as a balanced tree of 2^63 points
    int count = 0;
    waiting[count++] = {0, nodes_[0].box.distance(query)};
    while (count > 0) {
      auto [number, distance] = waiting[--count];
      if (distance > nearest.worst()) continue;
      const Node* node = &nodes_[number];
      while (node->leaf < 0) {
        int32_t near = number + 1, far = node->right;
        Real to_near = nodes_[near].box.distance(query), to_far = nodes_[far].box.distance(query);
        if (to_far < to_near) {
          std::swap(near, far);
          std::swap(to_near, to_far);
        }
        if (to_far <= nearest.worst()) waiting[count++] = {far, to_far};
        number = near;
        node = &nodes_[number];
      }
      look_at(leaves_[node->leaf], query, nearest);
    }
  }

 private:
  struct Entry {
    float xyz[3];
    int32_t row;  // from the scene's first
  };

  struct Box {
    Real low[3], high[3];

    Real distance(const Point<Real>& query) const {
      Real squares[3];
      for (int axis = 0; axis < 3; ++axis) {
        const Real gap = std::max({low[axis] - query.xyz[axis], query.xyz[axis] - high[axis], Real{0}});
        squares[axis] = gap * gap;
      }
      return (squares[0] + squares[1]) + squares[2];
    }

    int widest_axis() const {
      int widest = 0;
      for (int axis = 1; axis < 3; ++axis) {
        if (high[axis] - low[axis] > high[widest] - low[widest]) widest = axis;
      }
      return widest;
    }
  };

  struct Node {
    Box box;
    int32_t right = -1;  // the left child follows its parent
    int32_t leaf = -1;
  };

  // Coordinates apart, so that distances are computed several at a time; unused places are infinitely far.
  struct Leaf {
    Real x[kLeafSize], y[kLeafSize], z[kLeafSize];
    int64_t row[kLeafSize];
  };

  static void look_at(const Leaf& leaf, const Point<Real>& query, Nearest<Real>& nearest) {
    Real distances[kLeafSize];
    for (int i = 0; i < kLeafSize; ++i) {
      const Real x = query.xyz[0] - leaf.x[i], y = query.xyz[1] - leaf.y[i], z = query.xyz[2] - leaf.z[i];
      distances[i] = (x * x + y * y) + z * z;
    }
    for (int i = 0; i < kLeafSize; ++i) {
      if (distances[i] <= nearest.worst() && leaf.row[i] != kNobody) nearest.offer(distances[i], leaf.row[i]);
    }
  }

  static Box box_of(const Entry* first, const Entry* last) {
    float low[3], high[3];
    std::copy_n(first->xyz, 3, low);
    std::copy_n(first->xyz, 3, high);
    for (const Entry* entry = first; entry < last; ++entry) {
      for (int axis = 0; axis < 3; ++axis) {
        low[axis] = std::min(low[axis], entry->xyz[axis]);
        high[axis] = std::max(high[axis], entry->xyz[axis]);
      }
    }
    return {{low[0], low[1], low[2]}, {high[0], high[1], high[2]}};
  }

  template <int kAxis>
  static void split(Entry* first, Entry* middle, Entry* last) {
    std::nth_element(first, middle, last, [](const Entry& a, const Entry& b) { return a.xyz[kAxis] < b.xyz[kAxis]; });
  }

  void build(Entry* first, Entry* last) {
    const int32_t number = static_cast<int32_t>(nodes_.size());
    nodes_.push_back({box_of(first, last)});
    if (last - first <= kLeafSize) {
      nodes_[number].leaf = static_cast<int32_t>(leaves_.size());
      add_leaf(first, last);
      return;
    }
    const int axis = nodes_[number].box.widest_axis();
    const int64_t leaves = (last - first + kLeafSize - 1) / kLeafSize;
    Entry* middle = first + leaves / 2 * kLeafSize;  // whole leaves
    (axis == 0 ? split<0> : axis == 1 ? split<1> : split<2>)(first, middle, last);
    build(first, middle);
    nodes_[number].right = static_cast<int32_t>(nodes_.size());
    build(middle, last);
  }

  void add_leaf(const Entry* first, const Entry* last) {
    Leaf leaf;
    for (int i = 0; i < kLeafSize; ++i) {
      const bool used = first + i < last;
      leaf.x[i] = used ? first[i].xyz[0] : kInfinity<Real>;
      leaf.y[i] = used ? first[i].xyz[1] : kInfinity<Real>;
      leaf.z[i] = used ? first[i].xyz[2] : kInfinity<Real>;
      leaf.row[i] = used ? first_row_ + first[i].row : kNobody;
    }
    leaves_.push_back(leaf);
  }

  int64_t first_row_ = 0;
  std::vector<Node> nodes_;
  std::vector<Leaf> leaves_;
};

// All points one after the other.
template <typename Real>
void look_at_all(const float* points, int64_t first, int64_t last, const Point<Real>& query, Nearest<Real>& nearest) {
  const auto distance_to = [&](int64_t row) {
    const float* xyz = points + 3 * row;
    const Real x = query.xyz[0] - xyz[0], y = query.xyz[1] - xyz[1], z = query.xyz[2] - xyz[2];
    return (x * x + y * y) + z * z;
  };
  if (first == last) return;
  if (nearest.k() > 1) {
    for (int64_t row = first; row < last; ++row) {
      const Real distance = distance_to(row);
      if (distance <= nearest.worst()) nearest.offer(distance, row);
    }
    return;
  }
  int64_t best = first;
  Real least = distance_to(first);
  for (int64_t row = first + 1; row < last; ++row) {  // without a branch
    const Real distance = distance_to(row);
    best = distance < least ? row : best;
    least = distance < least ? distance : least;
  }
  nearest.offer(least, best);
}

template <typename Real>
std::tuple<Tensor, Tensor> search(const Tensor& query, const Tensor& points, const Tensor& query_offsets,
                                  const Tensor& point_offsets, int64_t k) {
  const Tensor queries = torch::stable::contiguous(query), targets = torch::stable::contiguous(points);
  const Tensor queries_of = torch::stable::contiguous(query_offsets), points_of = torch::stable::contiguous(point_offsets);
  const float* xyz = static_cast<const float*>(queries.const_data_ptr());
  const float* target = static_cast<const float*>(targets.const_data_ptr());
  const int64_t* first_query = static_cast<const int64_t*>(queries_of.const_data_ptr());
  const int64_t* first_point = static_cast<const int64_t*>(points_of.const_data_ptr());
  const int64_t scenes = queries_of.size(0) - 1, count = queries.size(0);
  Tensor index = torch::stable::new_empty(query_offsets, {count, k});
  Tensor distance = torch::stable::new_empty(query, {count, k});
  int64_t* out_index = static_cast<int64_t*>(index.mutable_data_ptr());
  float* out_distance = static_cast<float*>(distance.mutable_data_ptr());

  std::vector<std::unique_ptr<Tree<Real>>> trees(scenes);
  torch::stable::parallel_for(0, scenes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t scene = begin; scene < end; ++scene) {
      if (first_point[scene + 1] - first_point[scene] <= (k == 1 ? kFewForOne : kFew)) continue;
      trees[scene] = std::make_unique<Tree<Real>>(target, first_point[scene], first_point[scene + 1]);
    }
  });
  torch::stable::parallel_for(0, count, kQueriesPerTask, [&](int64_t begin, int64_t end) {
    Nearest<Real> nearest(k);
    int64_t scene = std::upper_bound(first_query, first_query + scenes + 1, begin) - first_query - 1;
    for (int64_t row = begin; row < end; ++row) {
      while (row >= first_query[scene + 1]) ++scene;
      nearest.clear();
      const Point<Real> point{{xyz[3 * row], xyz[3 * row + 1], xyz[3 * row + 2]}};
      if (trees[scene]) {
        trees[scene]->search(point, nearest);
      } else {
        look_at_all(target, first_point[scene], first_point[scene + 1], point, nearest);
      }
      for (int64_t place = 0; place < k; ++place) {
        out_index[row * k + place] = nearest.index(place);
        out_distance[row * k + place] = static_cast<float>(nearest.distance(place));
      }
    }
  });
  return {index, distance};
}

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& points, const Tensor& query_offsets,
                               const Tensor& point_offsets, int64_t k, bool float32_order) {
  return (float32_order ? search<float> : search<double>)(query, points, query_offsets, point_offsets, k);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(geo3d_kernels, CPU, m) {
  m.impl("knn", TORCH_BOX(&knn));
}
