// Moves and sums of token rows on a GPU. The bytes decide the time, so that each is read and written once, and 16 at a
// time where the addresses allow it. Rows are counted in packs. A pack is 16 neighbouring bytes of a row, or else one
// element.
//
//     thread block of a move, D = 5 packs:      threadIdx.x: pack of the row, then the one blockDim.x further on
//                                          ------------------->
//     threadIdx.y: row of the block  |     0 1 2 3 | 0 . . .          lanes of one row read neighbouring packs
//                                    v     0 1 2 3 | 0 . . .
#include "tokens/cuda.h"

#include <algorithm>
#include <type_traits>

#include "common/cuda_launch.h"

namespace maskfeat {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;         // packs of a thread in flight at a time
constexpr int kTokens = 32;        // of a batch row, for which one thread block of scatter sums duplicates
constexpr int kMostIds = 1 << 30;  // of a batch row in scatter, which counts them in an int
// Packs in flight and resident thread blocks of scatter. Four packs would take 70 registers, and leave room for three.
constexpr int kScatterUnroll = 3, kScatterBlocks = 4;

// N neighbouring elements, moved by one instruction.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  static constexpr int kLanes = N;
  using Element = T;
  T lane[N];
};

// Rows [B, N, width] of packs; strides and width count packs.
template <typename P>
struct PackView {
  const P* data;
  int64_t length, width;
  int64_t batch_stride, row_stride, column_stride;

  INLINE const P* row(int64_t b, int64_t n) const { return data + b * batch_stride + n * row_stride; }
};

template <typename P>
INLINE P filled(uint8_t byte) {  // 0: zeros; 0xff: NaN in every float type
  P pack;
  memset(&pack, byte, sizeof(pack));
  return pack;
}

// A thread copies the packs threadIdx.x, threadIdx.x + blockDim.x, ... of a row. It reads kInFlight of them before it
// writes the first. Where there is nothing to copy, it writes zeros or NaN.
template <int kInFlight = kUnroll, typename P>
__device__ __forceinline__ void copy_row(const P* __restrict__ from, int64_t stride, P* __restrict__ to, int64_t width,
                                         bool copied = true, uint8_t byte = 0) {
  const int64_t step = blockDim.x;
#pragma unroll 1
  for (int64_t p = threadIdx.x; p < width; p += kInFlight * step) {
    P pack[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      pack[i] = copied && p + i * step < width ? from[(p + i * step) * stride] : filled<P>(byte);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      if (p + i * step < width) to[p + i * step] = pack[i];
  }
}

// gather: thread (x, y) copies the packs x, x + blockDim.x, ... of row blockIdx.x * blockDim.y + y of the result.
template <typename P>
__global__ void __launch_bounds__(kThreads) gather_rows(PackView<P> tokens,  // [B, N, width]
                                                        IdView ids,          // [B, K]
                                                        P* out,              // [B, K, width]
                                                        int64_t rows) {      // B * K
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t b = row / ids.columns, id = ids.at(b, row % ids.columns);
  const bool inside = id >= 0 && id < tokens.length;
  copy_row(tokens.row(b, inside ? id : 0), tokens.column_stride, out + row * tokens.width, tokens.width, inside, 0xff);
}

// mask: the threads of gather. A row of the result is the mask token or the row of the tokens.
template <typename P>
__global__ void __launch_bounds__(kThreads) mask_rows(PackView<P> tokens,                              // [B, N, width]
                                                      const P* mask_token, int64_t mask_token_stride,  // [width]
                                                      MaskView mask,                                   // [B, N]
                                                      P* out,                                          // [B, N, width]
                                                      int64_t rows) {                                  // B * N
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t b = row / tokens.length, n = row % tokens.length;
  const bool masked = mask.at(b, n);
  copy_row(masked ? mask_token : tokens.row(b, n), masked ? mask_token_stride : tokens.column_stride,
           out + row * tokens.width, tokens.width);
}

// scatter: a thread block owns kTokens tokens of one batch row. First, its threads share the K ids, and note where each
// token stands first and last. These are a minimum and a maximum, so it does not matter which thread comes first. Then
// rows are written as in gather: zeros, a copy, or a sum in the order of k. Nothing is added atomically.
template <typename P>
__global__ void __launch_bounds__(kThreads, kScatterBlocks) scatter_add_rows(PackView<P> values,  // [B, K, width]
                                                                             IdView ids,          // [B, K]
                                                                             P* out,              // [B, length, width]
                                                                             int64_t length) {
  using T = typename P::Element;
  __shared__ int first[kTokens], last[kTokens];  // positions of each token in the ids; first > last if there is none
  const int64_t tiles = ceil_div<int64_t>(length, kTokens);
  const int64_t b = blockIdx.x / tiles, n0 = blockIdx.x % tiles * kTokens;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread < kTokens) first[thread] = kMostIds, last[thread] = -1;
  __syncthreads();
  for (int k = thread; k < values.length; k += kThreads) {
    const int64_t id = ids.at(b, k);
    if (id < n0 || id >= n0 + kTokens) continue;
    atomicMin(&first[id - n0], k);
    atomicMax(&last[id - n0], k);
  }
  __syncthreads();
  for (int t = threadIdx.y; t < kTokens && n0 + t < length; t += blockDim.y) {
    const int64_t n = n0 + t;
    const int k_first = first[t], k_last = last[t];
    P* to = out + (b * length + n) * values.width;
    if (k_first >= k_last) {
      const bool there = k_first == k_last;
      copy_row<kScatterUnroll>(values.row(b, there ? k_first : 0), values.column_stride, to, values.width, there);
      continue;
    }
#pragma unroll 1
    for (int64_t p = threadIdx.x; p < values.width; p += blockDim.x) {
      const P* from = values.row(b, 0) + p * values.column_stride;
      P pack;
      Wide<T> sum[P::kLanes] = {};
      for (int64_t k = k_first; k <= k_last; ++k) {
        if (ids.at(b, k) != n) continue;
        pack = from[k * values.row_stride];
        for (int i = 0; i < P::kLanes; ++i) sum[i] += widen(pack.lane[i]);
      }
      for (int i = 0; i < P::kLanes; ++i) pack.lane[i] = narrow<T>(sum[i]);
      to[p] = pack;
    }
  }
}

// sum: a thread block owns a chunk of rows and 32 packs of their width. Thread (x, y) adds pack x of the chosen rows of
// slice y. Then each thread adds the slices of one column, or of several.
//
//        32 packs                   shared memory
//     +-------------+ slice 0   ->  [ its sums ]  |
//     |    chunk    | slice 1   ->  [ its sums ]  |  sums[chunk]
//     +-------------+ ...           [   ...    ]  v
template <typename P, typename Result>
__global__ void __launch_bounds__(kThreads) sum_chunks(PackView<P> x,   // [B, N, width]
                                                       MaskView mask,   // [B, N], or null: all rows
                                                       Result* sums,    // [chunks, width * P::kLanes]
                                                       int64_t rows) {  // B * N
  using T = typename P::Element;
  constexpr int kColumns = 32 * P::kLanes;
  __shared__ Wide<T> slices[kChunkSlices][kColumns];
  const int64_t column_tiles = ceil_div<int64_t>(x.width, 32);
  const int64_t chunk = blockIdx.x / column_tiles, tile = blockIdx.x % column_tiles;
  const int64_t p = tile * 32 + threadIdx.x, row0 = chunk * kChunkRows + threadIdx.y * kSliceRows;
  Wide<T> sum[P::kLanes] = {};
  int64_t b = row0 / x.length, n = row0 % x.length;
  for (int r = 0; r < kSliceRows; r += kUnroll) {
    P pack[kUnroll];
    for (int i = 0; i < kUnroll; ++i) {
      const bool chosen = row0 + r + i < rows && p < x.width && (!mask.data || mask.at(b, n));
      pack[i] = chosen ? x.row(b, n)[p * x.column_stride] : filled<P>(0);
      if (++n == x.length) ++b, n = 0;
    }
    for (int i = 0; i < kUnroll; ++i)
      for (int j = 0; j < P::kLanes; ++j) sum[j] += widen(pack[i].lane[j]);
  }
  for (int j = 0; j < P::kLanes; ++j) slices[threadIdx.y][threadIdx.x * P::kLanes + j] = sum[j];
  __syncthreads();
  const int64_t width = x.width * P::kLanes, column0 = tile * kColumns;
  for (int c = threadIdx.y * 32 + threadIdx.x; c < kColumns && column0 + c < width; c += kThreads) {
    Wide<T> total = 0;
    for (int s = 0; s < kChunkSlices; ++s) total += slices[s][c];
    sums[chunk * width + column0 + c] = narrow<Result>(total);
  }
}

template <typename P>
PackView<P> in_packs(const TokenView& x) {
  constexpr int64_t n = P::kLanes;
  return {static_cast<const P*>(x.data), x.length, x.width / n, x.batch_stride / n, x.row_stride / n,
          n > 1 ? 1 : x.column_stride};
}

// True where every row starts at a multiple of 16 bytes and consists of whole packs.
bool is_packed(const TokenView& x) {
  const auto whole = [&x](int64_t elements) { return elements * bytes_of(x.dtype) % 16 == 0; };
  return x.column_stride == 1 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && whole(x.width) &&
         whole(x.batch_stride) && whole(x.row_stride);
}

// Calls run(P()) with the type of the packs.
template <typename T, typename Run>
void with_pack(bool packed, const Run& run) {
  packed ? run(Pack<T, 16 / sizeof(T)>()) : run(Pack<T, 1>());
}
template <typename Run>
void with_pack(Dtype dtype, bool packed, const Run& run) {
  switch (dtype) {
    case Dtype::float16: return with_pack<Float16>(packed, run);
    case Dtype::bfloat16: return with_pack<BFloat16>(packed, run);
    case Dtype::float32: return with_pack<float>(packed, run);
    case Dtype::float64: return with_pack<double>(packed, run);
    case Dtype::uint8: return;  // tokens are floats
  }
}

// A row has as many lanes as it has packs, up to a warp.
dim3 block_of(int64_t width) {
  int lanes = 1;
  while (lanes < 32 && lanes < width) lanes *= 2;
  return dim3(lanes, kThreads / lanes);
}

// A grid that is too large stays too large, and the launch refuses it. No result that fits into memory needs such a
// grid.
unsigned grid_of(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, 0xffffffff)); }

}  // namespace

int masked_gather_cuda(const TokenView& tokens, const IdView& ids, void* out, void* stream) {
  const int64_t rows = tokens.batch * ids.columns;
  with_pack(tokens.dtype, is_packed(tokens), [&](auto type) {
    using P = decltype(type);
    const PackView<P> view = in_packs<P>(tokens);
    const dim3 block = block_of(view.width);
    LAUNCH(gather_rows<P>, grid_of(ceil_div<int64_t>(rows, block.y)), block, 0, stream, view, ids, static_cast<P*>(out),
           rows);
  });
  return cudaGetLastError();
}

int masked_scatter_add_cuda(const TokenView& values, const IdView& ids, int64_t length, void* out, void* stream) {
  if (values.length > kMostIds) return cudaErrorInvalidValue;
  const int64_t tiles = values.batch * ceil_div<int64_t>(length, kTokens);
  with_pack(values.dtype, is_packed(values), [&](auto type) {
    using P = decltype(type);
    const PackView<P> view = in_packs<P>(values);
    LAUNCH(scatter_add_rows<P>, grid_of(tiles), block_of(view.width), 0, stream, view, ids, static_cast<P*>(out),
           length);
  });
  return cudaGetLastError();
}

int mask_tokens_cuda(const TokenView& tokens, const void* mask_token, int64_t mask_token_stride, const MaskView& mask,
                     void* out, void* stream) {
  const int64_t rows = tokens.batch * tokens.length;
  const bool packed = is_packed(tokens) && mask_token_stride == 1 && reinterpret_cast<uintptr_t>(mask_token) % 16 == 0;
  with_pack(tokens.dtype, packed, [&](auto type) {
    using P = decltype(type);
    const PackView<P> view = in_packs<P>(tokens);
    const dim3 block = block_of(view.width);
    LAUNCH(mask_rows<P>, grid_of(ceil_div<int64_t>(rows, block.y)), block, 0, stream, view,
           static_cast<const P*>(mask_token), mask_token_stride, mask, static_cast<P*>(out), rows);
  });
  return cudaGetLastError();
}

int masked_sum_cuda(const TokenView& x, const MaskView& mask, Dtype result, void* sums, void* stream) {
  const int64_t rows = x.batch * x.length, chunks = std::max<int64_t>(1, ceil_div<int64_t>(rows, kChunkRows));
  with_pack(x.dtype, is_packed(x), [&](auto type) {
    using P = decltype(type);
    using T = typename P::Element;
    PackView<P> view = in_packs<P>(x);
    view.length = std::max<int64_t>(1, view.length);  // a divisor, also where there are no rows
    const int64_t tiles = chunks * ceil_div<int64_t>(view.width, 32);
    const dim3 block(32, kChunkSlices);
    const auto launch = [&](auto result_type) {
      using Result = decltype(result_type);
      LAUNCH((sum_chunks<P, Result>), grid_of(tiles), block, 0, stream, view, mask, static_cast<Result*>(sums), rows);
    };
    if (chunks > 1) return launch(Wide<T>());
    with_pack(result, false, [&](auto result_pack) {
      using Result = typename decltype(result_pack)::Element;
      if constexpr (std::is_same_v<Result, T> || std::is_same_v<Wide<Result>, T>) launch(Result());
    });
  });
  return cudaGetLastError();
}

}  // namespace maskfeat
