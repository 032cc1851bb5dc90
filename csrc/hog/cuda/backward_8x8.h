// The second kernel of the gradient of blocks where the shape is a usual one: nine unsigned bins and cells of 8 x 8
// pixels, in blocks of 1 x 1 cells with Sobel gradients, or in those of blocks_8x8.h, and a region that lies in the
// image. It goes from the gradient to blocks before their normalisation to that to the pixels. A thread block walks down
// a strip of the image, four rows of pixels at a time, and a thread does a column.
//
//      h h <- up to 224 columns -> h h
//      h h p p p p p p p p p p p p h h    load:    four rows of pixels p and their halo h, and what their votes get
//        g g p p p p p p p p p p g g      vote:    the gradient to gx and gy, for p and one pixel g beside them
//            p p p p p p p p p p          pixels:  the adjoint of the stencil, from the neighbours on four sides
//
// What a vote gets is the gradient to its cell, for hard votes. With linear votes a pixel is in three cells along an
// axis, as the cells of neighbouring blocks overlap. The sum over those above each other has then been made for the row.
#pragma once

#include "hog/cuda/blocks_8x8.h"

namespace maskfeat {
namespace {

constexpr int kHalo = 2;                                                           // columns on each side of a strip
constexpr int kSpanCells = (kStripColumns + 2 + kStripCell - 2) / kStripCell + 1;  // that hold pixels of p and g

// What a pixel hands to its neighbours. Of one channel, `other` is the gradient to gy, else the bits of the channel.
struct Handed {
  float gx, other;
};

// Shared memory. What votes get: for hard votes the gradients of a row of cells, [cell, bin]. For linear votes, [row of
// pixels, block, left or right cell, bin], with one block more on the left.
template <typename Shape, int CHANNELS>
struct PixelsStrip {
  static constexpr int kRow = Shape::kLinear ? (kSpanCells + 1) * 2 * kStripBins : kSpanCells * kStripBins;
  float lines[kStripRows][CHANNELS][kStripThreads];
  Handed handed[kStripRows][kStripThreads];
  float received[Shape::kLinear ? kStripRows : 1][kRow];
  float roots[256];            // of bytes
  int64_t row_at[kStripRows];  // where rows of pixels begin
};

// load: what the votes of a row of cells get, the sums over all blocks that hold a cell.
template <typename Shape, typename Memory>
__device__ __forceinline__ void receive_cells(const BlockWork<float>& work, float weight, const float* grad_blocks,
                                              int cell_y, int first_cell, Memory& memory) {
  constexpr int P = Shape::kPerBlock;
  const BlockStrides& stride = work.strides;
  for (int i = static_cast<int>(threadIdx.x); i < Memory::kRow; i += static_cast<int>(blockDim.x)) {
    const int cell_x = first_cell + i / kStripBins;
    const float* const from = grad_blocks + i % kStripBins * stride.bin;
    float sum = 0;
#pragma unroll
    for (int y = 0; y < P; ++y)
#pragma unroll
      for (int x = 0; x < P; ++x) {
        const int block_y = cell_y - y, block_x = cell_x - x;
        if (block_y >= 0 && block_y < work.y.blocks && block_x >= 0 && block_x < work.x.blocks)
          sum += __ldg(from + block_y * stride.row + block_x * stride.column + y * stride.cell_row +
                       x * stride.cell_column);
      }
    memory.received[0][i] = sum * weight;
  }
}

// load: what linear votes get in four rows, the sums over the three cells above each other that a row is in. `step`
// counts groups of four rows from the region's first row.
template <typename Memory>
__device__ __forceinline__ void receive_rows(const BlockWork<float>& work, const StripWeights& weights,
                                             const float* grad_blocks, int step, int first_cell, Memory& memory) {
  const BlockStrides& stride = work.strides;
  const int block_y = step >> 1;
  const bool later = step & 1;
  for (int i = static_cast<int>(threadIdx.x); i < Memory::kRow; i += static_cast<int>(blockDim.x)) {
    const int entry = i % (2 * kStripBins), block_x = first_cell - 1 + i / (2 * kStripBins), right = entry / kStripBins;
    const float* const from =
        grad_blocks + block_x * stride.column + right * stride.cell_column + (entry - right * kStripBins) * stride.bin;
    const auto read_cell = [&](int block, int cell) {
      const bool is_block = block >= 0 && block < work.y.blocks && block_x >= 0 && block_x < work.x.blocks;
      return is_block ? __ldg(from + block * stride.row + cell * stride.cell_row) : 0.0f;
    };
    const float own = read_cell(block_y, 0), above = read_cell(block_y - 1, 1);
    const float middle = later ? read_cell(block_y, 1) : read_cell(block_y - 1, 0);
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      const int at = later ? row + kStripRows : row;
      const float of_middle = later ? weights.down[1][row] : weights.down[0][row + kStripCell];
      memory.received[row][i] =
          weights.down[0][at] * own + of_middle * middle + weights.down[1][at + kStripRows] * above;
    }
  }
}

// Where a column finds what its votes get: the places in a row of `received`, and its weights there.
template <typename Shape>
struct Received {
  static constexpr int kCount = Shape::kLinear ? 3 : 1;
  int at[kCount];
  float weight[kCount];

  // `column` counts from the region's first column, and `first_cell` is the first of the strip.
  __device__ Received(const StripWeights& weights, int column, int first_cell) {
    const int cell = (column >> 3) - first_cell, i = column & 7;
    if constexpr (Shape::kLinear) {
      const bool later = i >= kStripRows;
      const int block = (cell + 1) * 2 * kStripBins;
      at[0] = block, weight[0] = weights.across[0][i];
      at[1] = later ? block + kStripBins : block - 2 * kStripBins;
      weight[1] = later ? weights.across[1][i - kStripRows] : weights.across[0][i + kStripCell];
      at[2] = block - kStripBins, weight[2] = weights.across[1][i + kStripRows];
    } else {
      at[0] = cell * kStripBins, weight[0] = 1;
    }
  }
  __device__ __forceinline__ float operator()(const float* row, int bin) const {
    if constexpr (!Shape::kLinear) return row[at[0] + bin];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += weight[i] * row[at[i] + bin];
    return sum;
  }
};

struct GradientOfVote {
  float to_gx, to_gy;
};

// vote: the gradient to gx and gy of a pixel, as vote_of() and hog_pixels_kernel have it.
template <typename Shape>
__device__ __forceinline__ GradientOfVote vote_gradient(const BlockWork<float>& work,
                                                        const float (&cotangents)[kStripBins / 2],
                                                        const StrongestGradient& g, const Received<Shape>& received,
                                                        const float* row) {
  if (g.square == 0) return {0, 0};
  const float magnitude = std::sqrt(g.square), inverse = 1 / magnitude;
  if constexpr (!Shape::kLinear) {
    const int bin = work.from_horizontal ? bin_of(cotangents, g.gy, g.gx) : bin_of(cotangents, g.gx, g.gy);
    const float to_square = received(row, bin) * inverse;
    return {to_square * g.gx, to_square * g.gy};
  } else {
    const LinearVote vote = linear_vote(work, g);
    const float to_bin = received(row, vote.bin), change = received(row, vote.next) - to_bin;
    const float to_magnitude = to_bin + vote.above * inverse * change, to_angle = work.bins_per_angle * change;
    float by_sine = g.gx * inverse, by_cosine = -g.gy * inverse;  // the angle's derivatives, times the magnitude
    if (work.opencv) {
      const float s = std::fabs(g.gy), c = std::fabs(g.gx), smaller = s < c ? s : c, larger = s < c ? c : s;
      const float slope = opencv_octant_slope(smaller, larger) * magnitude, back = slope * quotient(smaller, larger);
      const float first = s > c ? back : slope, second = s > c ? slope : back;
      by_sine = g.gx < 0 ? -first : first, by_cosine = g.gy < 0 ? second : -second;
    }
    return {to_magnitude * (g.gx * inverse) + to_angle * by_cosine,
            to_magnitude * (g.gy * inverse) + to_angle * by_sine};
  }
}

// A pixel and its neighbours left and right, in two rows of the one channel.
struct SobelState {
  float up[3], here[3];
};

// gradient: Sobel's, of the row before the new one, which is `below`.
__device__ __forceinline__ StrongestGradient next_sobel(SobelState& state, const float (&below)[3]) {
  const float (&up)[3] = state.up, (&here)[3] = state.here;
  const float gx = sobel(up[2], up[0], here[2], here[0], below[2], below[0]);
  const float gy = sobel(below[0], up[0], below[1], up[1], below[2], up[2]);
#pragma unroll
  for (int i = 0; i < 3; ++i) state.up[i] = state.here[i], state.here[i] = below[i];
  return {gx, gy, gx * gx + gy * gy, 0};
}

template <typename Shape, bool SOBEL, int CHANNELS>
__global__ void __launch_bounds__(kStripThreads, 2)
    hog_pixel_strip_kernel(const __grid_constant__ BlockWork<float> work, const __grid_constant__ StripWeights weights,
                           const float* __restrict__ grad_blocks, float* __restrict__ grad_x) {
  using Memory = PixelsStrip<Shape, CHANNELS>;
  __shared__ Memory memory;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int strips_across = ceil_div(work.image_width, work.width), strip = static_cast<int>(blockIdx.x);
  const int row_of_strips = strip / strips_across;
  const int left = (strip - row_of_strips * strips_across) * work.width, top = row_of_strips * work.height;
  const int width = min(work.width, work.image_width - left), height = min(work.height, work.image_height - top);
  const Rectangle& region = work.region;
  grad_blocks += plane * work.size;

  // The column of this thread, in the image and in the region.
  const int x = left - kHalo + thread, column = x - region.left;
  const bool loads = thread < width + 2 * kHalo, hands = thread >= 1 && thread < width + 2 * kHalo - 1;
  const bool writes = thread >= kHalo && thread < width + kHalo;
  const bool votes = hands && column >= 0 && column < (work.x.blocks - 1) * work.x.stride + work.x.pixels;
  const int voted_rows = (work.y.blocks - 1) * work.y.stride + work.y.pixels;
  const int64_t first_pixel = work.image.plane_offset(plane) + mirror(x, work.image_width) * work.image.column_stride;
  const int first_cell = (left - 1 - region.left) >> 3;
  const Received<Shape> received(weights, column, first_cell);
  const uint32_t tie = column >= work.tie_column ? 1 : 0;
  // A pixel beside the border stands for two, the other in the mirror.
  const bool is_side = x == 0 || x == work.image_width - 1;
  const float of_left = x == 1 ? 2.0f : 1.0f, of_right = x == work.image_width - 2 ? 2.0f : 1.0f;
  float cotangents[kStripBins / 2] = {};
  if constexpr (!Shape::kLinear)
    for (int k = 0; k < kStripBins / 2; ++k) cotangents[k] = work.table[work.cotangents + 1 + k];
  if (work.sqrt && work.image.dtype == Dtype::uint8)
    for (int i = thread; i < 256; i += threads) memory.roots[i] = std::sqrt(static_cast<float>(i));

  // Rows count from the region's first, in steps of four. A step hands on the gradient of rows 4 step to 4 step + 3, and
  // finishes the four pixels that begin one row earlier. The first step fills the state.
  const int first_row = top - region.top, end_row = first_row + height;
  const int begin = ((first_row - 1) >> 2) - 1, end = (end_row >> 2) + 1;
  const int64_t plane_pixels = int64_t{work.image_height} * work.image_width;
  float* const to = grad_x + plane * work.channels.count * plane_pixels + x;
  find_rows(work, begin * kStripRows + 1, memory);
  __syncthreads();

  ColumnState<CHANNELS> state{};
  SobelState sobel_state{};
  float across[2][CHANNELS] = {}, along[2][CHANNELS] = {};  // of the last row and the one before
  for (int step = begin; step < end; ++step) {
    float pixels[kStripRows][CHANNELS] = {};
    if (loads) load_rows<CHANNELS>(work, first_pixel, thread, memory, pixels);
    if constexpr (Shape::kLinear)
      receive_rows(work, weights, grad_blocks, step, first_cell, memory);
    else if ((step & 1) == 0 || step == begin)
      receive_cells<Shape>(work, weights.shared, grad_blocks, step >> 1, first_cell, memory);
    __syncthreads();

    float to_gy[kStripRows] = {}, roots[kStripRows][CHANNELS] = {};
    int channel_of[kStripRows] = {};
#pragma unroll
    for (int i = 0; i < kStripRows; ++i) {
      if (!hands) break;
      const int row = step * kStripRows + i, y = region.top + row;
      StrongestGradient g;
      if constexpr (SOBEL) {
        roots[i][0] = sobel_state.up[1];
        g = next_sobel(sobel_state, {memory.lines[i][0][thread - 1], pixels[i][0], memory.lines[i][0][thread + 1]});
      } else {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) roots[i][c] = state.up[c];
        g = next_gradient(state, pixels[i], memory.lines[i], thread - 1, tie);
      }
      GradientOfVote to_vote{};
      if (votes && row >= 0 && row < voted_rows)
        to_vote = vote_gradient<Shape>(work, cotangents, g, received, memory.received[Shape::kLinear ? i : 0]);
      // Across the border, a pixel and its mirror image have no difference, whatever they are.
      to_gy[i] = y == 0 || y == work.image_height - 1 ? 0.0f : to_vote.to_gy;
      channel_of[i] = g.channel;
      memory.handed[i][thread] = {is_side ? 0.0f : to_vote.to_gx,
                                  CHANNELS == 1 ? to_gy[i] : bit_cast<float>(int32_t{g.channel})};
    }
    find_rows(work, (step + 1) * kStripRows + 1, memory);
    __syncthreads();

    if (!writes) continue;
#pragma unroll
    for (int i = 0; i < kStripRows; ++i) {
      const int row = step * kStripRows + i, y = region.top + row;  // the row of gradients, below that of the pixels
      const Handed before = memory.handed[i][thread - 1], after = memory.handed[i][thread + 1];
      const bool is_row = row > first_row && row <= end_row;
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float new_across, new_along;
        if constexpr (SOBEL) {
          new_across = before.gx - after.gx;
          new_along = of_left * before.other + of_right * after.other + 2 * to_gy[i];
        } else {
          const bool from_before = CHANNELS == 1 || bit_cast<int32_t>(before.other) == c;
          const bool from_after = CHANNELS == 1 || bit_cast<int32_t>(after.other) == c;
          new_across = (from_before ? before.gx : 0.0f) - (from_after ? after.gx : 0.0f);
          new_along = channel_of[i] == c ? to_gy[i] : 0.0f;
        }
        float sum = across[0][c];
        if constexpr (SOBEL) {
          const float of_upper = y - 2 == 0 ? 2.0f : 1.0f, of_lower = y == work.image_height - 1 ? 2.0f : 1.0f;
          sum = of_upper * across[1][c] + of_lower * new_across + 2 * sum;
        }
        sum += along[1][c] - new_along;
        if (work.sqrt) sum = roots[i][c] == 0 ? 0.0f : sum / (2 * roots[i][c]);
        if (is_row) to[c * plane_pixels + int64_t{y - 1} * work.image_width] = sum;
        across[1][c] = across[0][c], across[0][c] = new_across;
        along[1][c] = along[0][c], along[0][c] = new_along;
      }
    }
  }
}

// True where the kernel can do what is asked for.
inline bool has_pixel_strips(const BlockWork<float>& work, const BlockPlan& plan) {
  const auto inside = [](int64_t begin, int64_t extent, int64_t size) { return begin >= 0 && begin + extent <= size; };
  const bool one_cell = plan.y.per_block == 1 && plan.x.per_block == 1;
  return fits_strips(work, plan) && (one_cell ? work.sobel && work.channels.count == 1 : !work.sobel) &&
         (!work.linear || work.from_horizontal) && inside(work.region.top, work.region.height, work.image_height) &&
         inside(work.region.left, work.region.width, work.image_width) && work.image_height > 2 &&
         work.image_width > 2 && work.size > 0;
}

template <typename Shape, bool SOBEL, int CHANNELS>
int launch_pixel_strips(BlockWork<float>& work, const float* grad_blocks, float* grad_x, void* stream) {
  work.width = shared_evenly(work.image_width, ceil_div(work.image_width, kStripColumns));
  const int64_t strips_across = ceil_div(work.image_width, work.width);
  work.height = shared_evenly(work.image_height, ceil_div<int64_t>(kManyThreadBlocks, work.planes * strips_across));
  const int threads = ceil_div(work.width + 2 * kHalo, 32) * 32;
  const dim3 grid = grid_of_planes(ceil_div(work.image_height, work.height) * strips_across, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_pixel_strip_kernel<Shape, SOBEL, CHANNELS>), grid, dim3(threads), 0, stream, work,
         strip_weights<Shape>(work), grad_blocks, grad_x);
  return static_cast<int>(cudaGetLastError());
}

inline int launch_pixel_strips(BlockWork<float>& work, const BlockPlan& plan, const float* grad_blocks, float* grad_x,
                               void* stream) {
  const auto launch = [&](auto shape) {
    using Shape = decltype(shape);
    return work.channels.count == 1 ? launch_pixel_strips<Shape, false, 1>(work, grad_blocks, grad_x, stream)
                                    : launch_pixel_strips<Shape, false, 3>(work, grad_blocks, grad_x, stream);
  };
  if (work.linear) return launch(Shape<2, true>{});
  if (plan.y.per_block == 1) return launch_pixel_strips<Shape<1, false>, true, 1>(work, grad_blocks, grad_x, stream);
  return plan.y.per_block == 2 ? launch(Shape<2, false>{}) : launch(Shape<3, false>{});
}

}  // namespace
}  // namespace maskfeat
