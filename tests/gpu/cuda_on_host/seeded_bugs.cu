// Two small kernels, right as they stand and with one bug at a time: what the sanitizers and the shim must find.
#include "seeded_bugs.h"

#include "common/cuda_launch.h"

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffff;

// out[b] = sum of x[64 b .. 64 b + 63]: pairwise in shared memory down to one warp, then by shuffles.
template <Bug kBug>
__global__ void __launch_bounds__(kThreads) block_sum(const float* x,  // [64 * blocks]
                                                      float* out) {    // [blocks]
  __shared__ float partial[kThreads];
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  if (kBug == Bug::misaligned_vector) {
    partial[t] = reinterpret_cast<const float4*>(x + 1)->x;
  } else if (kBug != Bug::uninitialised_shared || t != 5) {
    partial[t + (kBug == Bug::shared_out_of_bounds)] = x[i + (kBug == Bug::global_out_of_bounds)];
  }
  if (kBug == Bug::early_exit && t == 7) return;
  if (kBug != Bug::missing_barrier) __syncthreads();
  if (t < 32) {
    float sum = partial[t] + partial[t + 32];
    if (kBug == Bug::divergent_barrier) __syncthreads();
    if (kBug == Bug::shuffle_without_fence) {
      partial[t] = sum;
      sum = __shfl_sync(kAllLanes, sum, t);
      sum = partial[t ^ 1];
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      if (kBug == Bug::absent_lanes && t >= lanes) break;
      sum += __shfl_down_sync(kBug == Bug::unnamed_lane ? 1u << t : kAllLanes, sum, lanes);
    }
    if (t == 0 && (kBug != Bug::unwritten_result || blockIdx.x == 0)) out[blockIdx.x] = sum;
  }
}

// out[b, k] = how many of the 64 values of block b are k, for k = 0 .. 3.
template <Bug kBug>
__global__ void __launch_bounds__(kThreads) block_histogram(const float* x,  // [64 * blocks]
                                                            float* out) {    // [blocks, 4]
  DYNAMIC_SHARED(float, count);
  const int t = threadIdx.x, bin = static_cast<int>(x[blockIdx.x * kThreads + t]);
  if (t < 4 + (kBug == Bug::dynamic_out_of_bounds)) count[t] = 0;
  __syncthreads();
  if (kBug == Bug::plain_addition) {
    count[bin] += 1;
  } else {
    atomicAdd(&count[bin], 1.0f);
  }
  __syncthreads();
  if (t < 4) out[4 * blockIdx.x + t] = count[t];
}

template <Bug kBug>
int launch(bool histogram, const float* x, float* out, int blocks) {
  const int threads = kBug == Bug::too_many_threads ? 2048 : kThreads;
  if (histogram) {
    LAUNCH(block_histogram<kBug>, blocks, threads, 4 * sizeof(float), nullptr, x, out);
  } else {
    LAUNCH(block_sum<kBug>, blocks, threads, 0, nullptr, x, out);
  }
  return cudaGetLastError();
}

}  // namespace

int seeded(Bug bug, bool histogram, const float* x, float* out, int blocks) {
  switch (bug) {
#define CASE(name) \
  case Bug::name: return launch<Bug::name>(histogram, x, out, blocks);
    BUGS(CASE)
#undef CASE
  }
  return -1;
}
