// The stages of the kernel of blocks_8x8.h: what a thread does for a column, a cell and a block.
#pragma once

#include "hog/cuda/cells_launch.h"
#include "hog/cuda/normalise.h"

namespace maskfeat {
namespace {

constexpr int kStripColumns = 224, kStripThreads = 256;
constexpr int kStripRows = 4;  // are loaded at once
constexpr int kStripBins = 9, kStripCell = 8;
constexpr int kLinearLength = 12, kLinearStart = 4;  // of the cells of a block for linear votes
constexpr int kBlockLanes = 8;                       // share a block

// What the compiler knows of a block.
template <int PER_BLOCK, bool LINEAR>
struct Shape {
  static constexpr int kPerBlock = PER_BLOCK, kEntries = PER_BLOCK * PER_BLOCK * kStripBins;
  static constexpr int kRun = PER_BLOCK * kStripBins;                         // entries of a row or column of cells
  static constexpr int kOfLane = (kEntries + kBlockLanes - 1) / kBlockLanes;  // entries of a lane
  static constexpr int kMostBlocks = kStripColumns / kStripCell - PER_BLOCK + 1;
  static constexpr bool kLinear = LINEAR;
};

// The weights of pixels in cells, of each cell of a block for linear votes, else all in one number. As parameters of a
// kernel they are operands, which need no register.
struct StripWeights {
  float down[2][kLinearLength], across[2][kLinearLength], shared;
};

// Shared memory. Cells have the order of the entries of a block. Those that blocks share are kept as the rows that a
// block holds, each with room for one cell more.
template <typename Shape, int CHANNELS>
struct StripMemory {
  static constexpr int kRowOfCells = kStripBins * (kStripColumns / kStripCell + 1);
  float lines[kStripRows][CHANNELS][kStripColumns + 4];
  float columns[Shape::kLinear ? 4 : 1][kStripBins][kStripColumns];
  float cells[Shape::kLinear ? (Shape::kMostBlocks + 1) * Shape::kEntries : Shape::kPerBlock * kRowOfCells];
  float roots[256];               // of bytes
  float4 weights[2][kStripRows];  // of rows, in the three cells of linear votes
  int64_t row_at[kStripRows];     // where rows of pixels begin
};

// load: where four rows of pixels begin, for the load after the next barrier.
template <typename Memory>
__device__ __forceinline__ void find_rows(const BlockWork<float>& work, int first, Memory& memory) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kStripRows) memory.row_at[i] = mirror(work.region.top + first + i, work.image_height) * work.image.row_stride;
}

// load: the pixel of this thread in four rows, as floats, or roots of bytes.
template <int CHANNELS, typename Memory, typename Pixel>
__device__ __forceinline__ void load_pixels(const BlockWork<float>& work, const Pixel* pixels, const Memory& memory,
                                            float (&to)[kStripRows][CHANNELS]) {
  Pixel loaded[kStripRows][CHANNELS];
#pragma unroll
  for (int i = 0; i < kStripRows; ++i) {
    const Pixel* from = pixels + memory.row_at[i];
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel, from += work.channels.stride) loaded[i][channel] = read(from);
  }
#pragma unroll
  for (int i = 0; i < kStripRows; ++i)
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel)
      if constexpr (sizeof(Pixel) == 1)
        to[i][channel] = work.sqrt ? memory.roots[loaded[i][channel]] : static_cast<float>(int{loaded[i][channel]});
      else
        to[i][channel] = widen(loaded[i][channel]);
}

// load: the pixel of this thread in four rows, or its square root, also to place `at` of the lines.
template <int CHANNELS, typename Memory>
__device__ __forceinline__ void load_rows(const BlockWork<float>& work, int64_t first_pixel, int at, Memory& memory,
                                          float (&pixels)[kStripRows][CHANNELS]) {
  const auto load = [&](auto* from) { load_pixels<CHANNELS>(work, from + first_pixel, memory, pixels); };
  switch (work.image.dtype) {
    case Dtype::uint8: load(static_cast<const uint8_t*>(work.image.data)); break;
    case Dtype::float16: load(static_cast<const Float16*>(work.image.data)); break;
    case Dtype::bfloat16: load(static_cast<const BFloat16*>(work.image.data)); break;
    default: load(static_cast<const float*>(work.image.data));
  }
  if (work.sqrt && work.image.dtype != Dtype::uint8)
    for (auto& row : pixels)
      for (float& pixel : row) pixel = std::sqrt(pixel);
#pragma unroll
  for (int i = 0; i < kStripRows; ++i)
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel) memory.lines[i][channel][at] = pixels[i][channel];
}

// What a column keeps from one row to the next.
template <int CHANNELS>
struct ColumnState {
  float up[CHANNELS], here[CHANNELS], across[CHANNELS];  // the pixels of two rows, and gx of the second
};

struct StrongestGradient {
  float gx, gy, square;
  int channel;
};

// gradient: of the row before `lines`, from the strongest channel. `below` are the pixels of this column in `lines`.
// Squares are compared by their bits, as integers: the order is the same, and NaN is the largest. `tie` is 1 where the
// last of equally strong channels is taken, else 0.
template <int CHANNELS, typename Lines>
__device__ __forceinline__ StrongestGradient next_gradient(ColumnState<CHANNELS>& state, const float (&below)[CHANNELS],
                                                           const Lines& lines, int column, uint32_t tie) {
  StrongestGradient taken{};
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel) {
    const float down = below[channel];
    const float gx = state.across[channel], gy = down - state.up[channel], square = gx * gx + gy * gy;
    state.across[channel] = lines[channel][column + 2] - lines[channel][column];
    state.up[channel] = state.here[channel], state.here[channel] = down;
    if (channel == 0 || bit_cast<uint32_t>(square) + tie > bit_cast<uint32_t>(taken.square))
      taken = {gx, gy, square, channel};
  }
  return taken;
}

// vote: the bin that holds an orientation, as hard_bin() decides it. Edges k and 9 - k have opposite cotangents, so only
// the absolute values of sine and cosine are compared. Where their signs differ, edges are counted from the other side.
// An edge that the gradient lies on then counts no more, as the next larger number is compared.
__device__ __forceinline__ int bin_of(const float (&cotangents)[kStripBins / 2], float sine, float cosine) {
  const bool mirrored = static_cast<int32_t>(bit_cast<uint32_t>(sine) ^ bit_cast<uint32_t>(cosine)) < 0 && sine != 0;
  const float size = bit_cast<float>((bit_cast<uint32_t>(cosine) & 0x7fffffffu) + (mirrored ? 1 : 0));
  int bin = 0;
#pragma unroll
  for (int k = 0; k < kStripBins / 2; ++k) bin += std::fabs(sine) * cotangents[k] >= size;
  return mirrored ? kStripBins - 1 - bin : bin;
}

// 1 / x. The compiler makes the same of the division, plus a branch for extreme arguments.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(y, fmaf(-x, y, 1.0f), y);
#else
  return 1.0f / x;
#endif
}

// a / b, in the same way.
__device__ __forceinline__ float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  const float y = reciprocal(b), q = a * y, better = fmaf(fmaf(-b, q, a), y, q);
  return fmaf(fmaf(-b, better, a), y, better);
#else
  return a / b;
#endif
}

// vote: a bin and the share of the magnitude that goes to the next.
struct LinearVote {
  float below, above;
  int bin, next;
};
__device__ __forceinline__ LinearVote linear_vote(const BlockWork<float>& work, const StrongestGradient& g) {
  const float sine = g.gy, cosine = g.gx, magnitude = root(g.square), s = std::fabs(sine), c = std::fabs(cosine);
  const float smaller = s < c ? s : c, larger = s < c ? c : s;
  // A flat pixel must have an orientation too, which OpenCV's epsilon gives it.
  const float octant = work.opencv ? opencv_arc_tangent(quotient(smaller, larger + 2.220446e-16f))
                                   : octant_angle(smaller, larger > 0 ? larger : 1, magnitude);
  const float place = full_circle(octant * work.bins_per_angle, sine, cosine, 2.0f * kStripBins) - 0.5f;
  // -1 to 17, and any number where an infinite magnitude makes the place NaN.
  const float floored = std::floor(fminf(place, 2.0f * kStripBins - 1)), above = magnitude * (place - floored);
  int bin = static_cast<int>(floored);
  bin = bin < 0 ? bin + kStripBins : bin;
  bin = bin >= kStripBins ? bin - kStripBins : bin;
  return {magnitude - above, above, bin, bin + 1 < kStripBins ? bin + 1 : 0};
}

// Where the sums of a column are. In every other 32 columns the halves of a cell change places, so that eight lanes that
// read four columns of neighbouring cells find them in different banks.
__device__ __forceinline__ int place_of(int column) { return column ^ (column / 32 % 2 * 4); }

// The sums of the columns of `CELLS` neighbouring cells.
template <int CELLS>
struct Columns {
  float value[CELLS * kStripCell];
  __device__ __forceinline__ Columns(const float* sums, int cell) {
    for (float& v : value) v = -0.0f;  // the only number that adds nothing to any other
    add(sums, cell);
  }
  __device__ __forceinline__ void add(const float* sums, int cell) {
#pragma unroll
    for (int i = 0; i < CELLS * kStripCell; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(sums + place_of(cell * kStripCell + i));
      value[i] += four.x, value[i + 1] += four.y, value[i + 2] += four.z, value[i + 3] += four.w;
    }
  }
};

// The sums of columns for linear votes: which of the four in memory serves for what. Four rows are loaded at once. They
// are rows 0-3 or 4-7 of a step of eight, and they lie in three cells. One is the upper cell of the block row that
// begins with this step. One is the lower cell of that row, or of the row before. Of the third the last four rows end
// here, which the CPU sums apart.
struct ColumnRoles {
  int upper = 0, lower = 1, ending = 2;  // `ending` waits for its last four rows
  static constexpr int kLast = 3;

  // After a half of a step, an ended sum becomes the next one.
  __device__ __forceinline__ void advance(int half) {
    const int ended = ending;
    if (half % 2 == 0)
      ending = lower, lower = ended;
    else
      ending = upper, upper = ended;
  }
};

// vote: the four rows before those in memory, into the histogram of this column, for linear votes with weights.
template <typename Shape, int CHANNELS, typename Memory>
__device__ __forceinline__ void vote_rows(const BlockWork<float>& work, const float (&cotangents)[kStripBins / 2],
                                          int half, int column, uint32_t tie, const ColumnRoles& roles,
                                          const float (&pixels)[kStripRows][CHANNELS], ColumnState<CHANNELS>& state,
                                          Memory& memory) {
  const int place = place_of(column);
  float* const upper = memory.columns[Shape::kLinear ? roles.upper : 0][0] + place;
  float* const lower = memory.columns[Shape::kLinear ? roles.lower : 0][0] + place;
  float* const last = memory.columns[Shape::kLinear ? roles.kLast : 0][0] + place;
  if (Shape::kLinear || half % 2 == 0) {
    float* const begins = half % 2 == 0 ? upper : lower;
#pragma unroll
    for (int k = 0; k < kStripBins; ++k) begins[k * kStripColumns] = last[k * kStripColumns] = 0;
  }
#pragma unroll
  for (int i = 0; i < kStripRows; ++i) {
    const StrongestGradient g = next_gradient(state, pixels[i], memory.lines[i], column, tie);
    if constexpr (Shape::kLinear) {
      const LinearVote vote = linear_vote(work, g);
      const float4 weights = memory.weights[half & 1][i];
      const int below = vote.bin * kStripColumns, above = vote.next * kStripColumns;
      // All six are loaded before the first is stored, as the compiler does not know that the bins differ.
      const float of_upper[2] = {upper[below], upper[above]}, of_lower[2] = {lower[below], lower[above]};
      const float of_last[2] = {last[below], last[above]};
      upper[below] = of_upper[0] + vote.below * weights.x, upper[above] = of_upper[1] + vote.above * weights.x;
      lower[below] = of_lower[0] + vote.below * weights.y, lower[above] = of_lower[1] + vote.above * weights.y;
      last[below] = of_last[0] + vote.below * weights.z, last[above] = of_last[1] + vote.above * weights.z;
    } else {
      upper[bin_of(cotangents, g.gy, g.gx) * kStripColumns] += root(g.square);
    }
  }
}

// The sum over the lanes of a block, in each of them. A lane has an even and an odd partial sum: together they are the
// 16 of the CPU, and are added as there.
__device__ __forceinline__ float sum_of_lanes(const float (&parts)[2]) {
  float sum = parts[0] + parts[1];
#pragma unroll
  for (int lanes = kBlockLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes, kBlockLanes);
  return sum;
}

__device__ __forceinline__ float block_length(const BlockWork<float>& work, float squares, float eps) {
  return work.opencv ? root(squares) + eps : root(squares + eps * eps);
}

// normalise: divides a block by its length and cuts it, v -> cut, and returns the factor that is left to apply. With
// GRADIENT, turns the gradient g to the normalised block into that to v. These are the formulas of normalise.h.
template <bool GRADIENT, int N>
__device__ __forceinline__ void normalise_entries(const BlockWork<float>& work, const float (&v)[N], float (&g)[N]) {
  float squares[2] = {}, again[2] = {}, dots[2] = {}, cut[N];
#pragma unroll
  for (int i = 0; i < N; ++i) squares[i % 2] += v[i] * v[i];
  const float length = block_length(work, finite_or_nan(sum_of_lanes(squares)), work.eps), factor = reciprocal(length);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    cut[i] = fminf(v[i] * factor, work.clip);
    again[i % 2] += cut[i] * cut[i];
    if (GRADIENT) dots[i % 2] += cut[i] * g[i];
  }
  const float length_again = block_length(work, sum_of_lanes(again), work.eps_again);
  const float last = reciprocal(length_again) + (factor - factor);  // fminf() has no NaN
  if (!GRADIENT) {
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = cut[i] * last;
    return;
  }
  const float projection_again = projection_of(work, sum_of_lanes(dots), length_again, work.eps_again);
  dots[0] = dots[1] = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    g[i] = v[i] * factor > work.clip ? 0.0f : g[i] * last - cut[i] * projection_again;
    dots[i % 2] += g[i] * v[i];
  }
  const float projection = projection_of(work, sum_of_lanes(dots), length, work.eps);
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = g[i] * factor - v[i] * projection;
}

}  // namespace
}  // namespace maskfeat
