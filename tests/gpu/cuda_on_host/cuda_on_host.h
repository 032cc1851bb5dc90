// Enough of CUDA to run a kernel's own source on the host, under sanitizers that know nothing of GPUs.
//
// Every CUDA thread of a block is a fiber. It runs until it waits at a barrier or a shuffle; blocks run one after another.
// Threads and blocks take their turns in an order drawn from CUDA_ON_HOST_SEED (0: ascending). Shared memory is filled
// with the byte 0xff (NaN in every float type) when a block starts. What a GPU leaves undefined ends the program with a
// message: a barrier that not all threads reach, a shuffle whose mask names a lane that stays away or reads one that it
// does not name. For the thread sanitizer, only barriers, __syncwarp and atomics order memory accesses.
//
// Not seen: races between blocks, fused multiply-adds, the cost of anything.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

namespace cuda_on_host {

struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};

// Of the CUDA thread that calls.
const Position& position();
unsigned lane();
void* dynamic_shared();
void sync_threads(int line);
void sync_warp(unsigned mask, int line);

// Wait until every lane of the mask has come with a value; return that of the lane `source`, or one bit a lane.
uint64_t shuffle_word(unsigned mask, uint64_t value, unsigned source, int line);
unsigned ballot(unsigned mask, bool value, int line);

void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* argument);
cudaError_t take_error();

// As a launch does, copies the arguments once, converted to the types of the parameters.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
            Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, std::tuple<Parameters...>(arguments...)};
  const auto body = [](void* call) {
    std::apply(static_cast<Call*>(call)->kernel, static_cast<Call*>(call)->parameters);
  };
  run(grid, block, shared_bytes, body, &call);
}

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(From) <= 8 && std::is_trivially_copyable<From>::value, "what a shuffle can carry");
  To to{};
  memcpy(&to, &from, sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));
  return to;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, int line) {
  return bits<T>(shuffle_word(mask, bits<uint64_t>(value), source, line));
}

}  // namespace cuda_on_host

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_host::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(cuda_on_host::dynamic_shared())

#define __global__
#define __device__
#define __host__
#define __shared__ static  // shared_memory.ld gathers the statics of a kernel file
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx (cuda_on_host::position().thread)
#define blockIdx (cuda_on_host::position().block)
#define blockDim (cuda_on_host::position().block_size)
#define gridDim (cuda_on_host::position().grid_size)
constexpr int warpSize = 32;

// Aligned as on the GPU, so that the undefined-behaviour sanitizer sees a vector access that is not.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_host::sync_threads(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { cuda_on_host::sync_warp(mask, line); }

// Shuffles within segments of `width` lanes; where the source lies outside the segment, a lane gets its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const unsigned first = cuda_on_host::lane() & ~(width - 1);
  return cuda_on_host::shuffle(mask, value, first + (source & (width - 1)), line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const unsigned lane = cuda_on_host::lane();
  return cuda_on_host::shuffle(mask, value, (lane & (width - 1)) < delta ? lane : lane - delta, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const unsigned lane = cuda_on_host::lane();
  return cuda_on_host::shuffle(mask, value, (lane & (width - 1)) + delta < unsigned(width) ? lane + delta : lane, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
  const unsigned lane = cuda_on_host::lane(), source = lane ^ lanes;
  return cuda_on_host::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return cuda_on_host::ballot(mask, predicate != 0, line);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* to, unsigned value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline float atomicAdd(float* to, float value) {
  float old, sum;
  __atomic_load(to, &old, __ATOMIC_RELAXED);
  do sum = old + value;
  while (!__atomic_compare_exchange(to, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
inline int atomicMin(int* to, int value) {
  int old = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(to, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline int atomicMax(int* to, int value) {
  int old = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (value > old && !__atomic_compare_exchange_n(to, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

// Rounded once each; the host is compiled without contraction.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1 / std::sqrt(double(a))); }
inline float rsqrtf(float a) { return __frsqrt_rn(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline unsigned __float_as_uint(float a) { return cuda_on_host::bits<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return cuda_on_host::bits<float>(a); }
inline int __float_as_int(float a) { return cuda_on_host::bits<int>(a); }
inline float __int_as_float(int a) { return cuda_on_host::bits<float>(a); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline cudaError_t cudaGetLastError() { return cuda_on_host::take_error(); }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
