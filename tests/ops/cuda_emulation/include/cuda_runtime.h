// CUDA's kernel language in plain C++, as far as the sources of cuda_ext use it: the threads of a block are fibers that take
// turns on one processor and change at barriers, so that kernels run, and can be tested, where there is no GPU.
//
// What it finds: wrong results, barriers that not all threads reach, and reads of shared memory that nobody wrote, which
// holds NaN. A missing barrier shows when the order in which threads run between barriers matters, which
// GEO3D_EMULATION_ORDER changes. What it cannot find: what depends on real concurrency, and anything about speed.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

namespace geo3d_emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kMaxShared = 101376;  // what a block may have on every supported device

inline size_t& allowed_shared() {  // by cudaFuncSetAttribute; 48 KB without it
  static size_t bytes = 48 * 1024;
  return bytes;
}

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "CUDA emulation: block (%u, %u, %u), thread (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, message.c_str());
  std::abort();
}

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  State state = State::kReady;
  int line = 0;           // of the barrier at which it waits
  uint64_t exchanged = 0;  // value that it shows to its warp
  bool vote = false;
};

// One block at a time.
class Block {
 public:
  static Block& get() {
    static Block block;
    return block;
  }

  template <typename Body>
  void run(dim3 shape, size_t shared_bytes, const Body& body) {
    const unsigned count = shape.x * shape.y * shape.z;
    while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
    shape_ = shape;
    count_ = count;
    body_ = [](const void* b) { (*static_cast<const Body*>(b))(); };
    body_data_ = &body;
    shared_.reset(new (std::align_val_t{128}) char[shared_bytes + 1]);
    std::memset(shared_.get(), 0xFF, shared_bytes);  // NaN
    for (unsigned i = 0; i < count; ++i) {
      fibers_[i]->started = false;
      fibers_[i]->state = State::kReady;
    }
    schedule();
  }

  void* shared() { return shared_.get(); }
  unsigned current() const { return current_; }
  Fiber& fiber(unsigned i) { return *fibers_[i]; }

  // The caller waits until all threads of the block that have not ended are here.
  void wait_for_block(int line) { wait(State::kAtBlockBarrier, line); }

  // The same for the threads of its warp.
  void wait_for_warp(unsigned mask, int line) {
    if (mask != 0xFFFFFFFF) fail("only full masks are emulated");
    wait(State::kAtWarpBarrier, line);
  }

  bool any_vote() {
    bool any = false;
    for (unsigned i = 0; i < count_; ++i) any = any || (fibers_[i]->state != State::kDone && fibers_[i]->vote);
    return any;
  }

 private:
  struct Free {
    void operator()(char* data) const { ::operator delete[](data, std::align_val_t{128}); }
  };

  void wait(State state, int line) {
    Fiber& fiber = *fibers_[current_];
    fiber.state = state;
    fiber.line = line;
    if (_setjmp(fiber.resume) == 0) _longjmp(scheduler_, 1);
  }

  static void enter() {
    Block& block = get();
    block.body_(block.body_data_);
    block.fibers_[block.current_]->state = State::kDone;
    _longjmp(block.scheduler_, 1);
  }

  void resume(unsigned i) {
    current_ = i;
    threadIdx = dim3(i % shape_.x, i / shape_.x % shape_.y, i / (shape_.x * shape_.y));
    Fiber& fiber = *fibers_[i];
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Block::enter, 0);
    setcontext(&fiber.start);
  }

  void schedule() {
    std::vector<unsigned> order(count_);
    std::iota(order.begin(), order.end(), 0u);
    const char* wanted = std::getenv("GEO3D_EMULATION_ORDER");
    const std::string name = wanted == nullptr ? "forward" : wanted;
    for (;;) {
      if (name == "reverse") std::sort(order.begin(), order.end(), std::greater<unsigned>());
      if (name == "random") std::shuffle(order.begin(), order.end(), random_);
      bool any = false;
      for (const unsigned i : order) {
        if (fibers_[i]->state == State::kReady) resume(i), any = true;
      }
      if (release_warps() || any) continue;
      if (!release(0, count_, State::kAtBlockBarrier)) break;
    }
    for (unsigned i = 0; i < count_; ++i) {
      if (fibers_[i]->state != State::kDone) fail("deadlock: a barrier that not all threads reach");
    }
  }

  bool release_warps() {
    bool any = false;
    for (unsigned first = 0; first < count_; first += kWarp) {
      any = release(first, std::min(first + kWarp, count_), State::kAtWarpBarrier) || any;
    }
    return any;
  }

  // Lets the threads go on if those that have not ended all wait at this kind of barrier.
  bool release(unsigned first, unsigned last, State state) {
    int line = 0;
    for (unsigned i = first; i < last; ++i) {
      const Fiber& fiber = *fibers_[i];
      if (fiber.state == State::kDone) continue;
      if (fiber.state != state) return false;
      if (line != 0 && line != fiber.line) fail("threads wait at different barriers");
      line = fiber.line;
    }
    if (line == 0) return false;
    for (unsigned i = first; i < last; ++i) {
      if (fibers_[i]->state == state) fibers_[i]->state = State::kReady;
    }
    return true;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::unique_ptr<char[], Free> shared_;
  jmp_buf scheduler_;
  dim3 shape_;
  unsigned count_ = 0, current_ = 0;
  void (*body_)(const void*) = nullptr;
  const void* body_data_ = nullptr;
  std::mt19937 random_{0};
};

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(Block::get().shared());
}

struct DeviceGuard {  // the CPU has no other devices
  explicit DeviceGuard(int32_t) {}
};

// kernel<<<grid, block, shared, stream>>>(arguments...) is rewritten to Launch(grid, block, ...)(kernel)(arguments...).
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) : grid_(grid), block_(block), shared_(shared) {
    if (shared > kMaxShared || shared > allowed_shared()) fail("more shared memory than allowed");
    if (block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x > INT32_MAX ||
        grid.x * grid.y * grid.z == 0) {
      fail("impossible launch");
    }
  }

  template <typename Kernel>
  auto operator()(const Kernel& kernel) const {
    return [*this, kernel](const auto&... arguments) {
      gridDim = grid_;
      blockDim = block_;
      const auto body = [&] { kernel(arguments...); };
      for (unsigned z = 0; z < grid_.z; ++z) {
        for (unsigned y = 0; y < grid_.y; ++y) {
          for (unsigned x = 0; x < grid_.x; ++x) {
            blockIdx = dim3(x, y, z);
            Block::get().run(block_, shared_, body);
          }
        }
      }
    };
  }

 private:
  dim3 grid_, block_;
  size_t shared_;
};

template <typename T>
T exchange(unsigned mask, T value, unsigned from, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block& block = Block::get();
  const unsigned self = block.current();
  std::memcpy(&block.fiber(self).exchanged, &value, sizeof(T));
  block.wait_for_warp(mask, line);
  std::memcpy(&value, &block.fiber(self / kWarp * kWarp + from).exchanged, sizeof(T));
  block.wait_for_warp(mask, line);
  return value;
}

inline bool vote_of_block(bool vote, int line) {
  Block& block = Block::get();
  block.fiber(block.current()).vote = vote;
  block.wait_for_block(line);
  const bool any = block.any_vote();
  block.wait_for_block(line);
  return any;
}

}  // namespace geo3d_emulation

#define __syncthreads() geo3d_emulation::Block::get().wait_for_block(__LINE__)
#define __syncthreads_or(vote) geo3d_emulation::vote_of_block(vote, __LINE__)
#define __syncwarp() geo3d_emulation::Block::get().wait_for_warp(0xFFFFFFFF, __LINE__)
#define __shfl_xor_sync(mask, value, distance)                                                                   \
  geo3d_emulation::exchange(mask, value, geo3d_emulation::Block::get().current() % geo3d_emulation::kWarp ^ (distance), \
                            __LINE__)

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  geo3d_emulation::allowed_shared() = std::max<size_t>(geo3d_emulation::allowed_shared(), bytes);
  return cudaSuccess;
}

template <typename T>
T __ldg(const T* data) {
  return *data;
}

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

using std::isfinite;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T, typename Change>
T emulated_atomic(T* place, const Change& change) {
  const T before = *place;
  *place = change(before);
  return before;
}
template <typename T>
T atomicAdd(T* place, T value) {
  return emulated_atomic(place, [&](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomicMin(T* place, T value) {
  return emulated_atomic(place, [&](T before) { return std::min(before, value); });
}
template <typename T>
T atomicMax(T* place, T value) {
  return emulated_atomic(place, [&](T before) { return std::max(before, value); });
}
template <typename T>
T atomicCAS(T* place, T expected, T value) {
  return emulated_atomic(place, [&](T before) { return before == expected ? value : before; });
}
