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

constexpr int kHalo = 2;  // columns on each side of a strip
constexpr int kFewestThreads = 64;
constexpr int kSpanCells =
    (kStripColumns + 2 + kStripCell - 2) / kStripCell + 1;  // the most that hold pixels of p and g

// What a pixel hands to its neighbours. Of one channel, `other` is the gradient to gy, else the bits of the channel.
struct Handed {
  float gx, other;
};

// Shared memory. `received` is what votes get: for hard votes the gradients of a row of cells, [cell, bin]. For linear
// votes, [row of pixels, block, left or right cell, bin], with one block more on the left.
template <typename Shape, int CHANNELS>
struct PixelsStrip {
  static constexpr int kSpan = Shape::kLinear ? kSpanCells + 1 : kSpanCells;    // cells, or blocks
  static constexpr int kOfEach = Shape::kLinear ? 2 * kStripBins : kStripBins;  // numbers
  static constexpr int kOfThread = Shape::kLinear ? 3 : 2;                      // numbers that a thread computes
  float lines[kStripRows][CHANNELS][kStripThreads];
  Handed handed[kStripRows][kStripThreads];
  float received[Shape::kLinear ? kStripRows : 1][kSpan * kOfEach];
  float4 weights[2][kStripRows];  // of rows, in the three cells of linear votes
  int64_t row_at[kStripRows];     // where rows of pixels begin
};

// load: the numbers of `received` that a thread computes, every so-many-th.
template <typename Shape, int CHANNELS>
struct Receiver {
  using Memory = PixelsStrip<Shape, CHANNELS>;
  static constexpr int P = Shape::kPerBlock;
  int at[Memory::kOfThread];            // in the gradient of a plane's blocks, in block row 0
  uint32_t present[Memory::kOfThread];  // whether there are these blocks: bit i for the one i columns to the left

  __device__ Receiver(const BlockWork<float>& work, int first_cell) {
    const BlockStrides& stride = work.strides;
#pragma unroll
    for (int i = 0; i < Memory::kOfThread; ++i) {
      const int number = static_cast<int>(threadIdx.x + i * blockDim.x), place = number / Memory::kOfEach;
      const int entry = number - place * Memory::kOfEach, right = entry / kStripBins, bin = entry - right * kStripBins;
      const int block = first_cell + place - (Shape::kLinear ? 1 : 0);
      at[i] = static_cast<int>(block * stride.column + right * stride.cell_column + bin * stride.bin);
      present[i] = 0;
      for (int x = 0; x < (Shape::kLinear ? 1 : P); ++x)
        if (block - x >= 0 && block - x < work.x.blocks) present[i] |= 1u << x;
    }
  }

  // Of a row of cells: the sums over all blocks that hold a cell.
  __device__ __forceinline__ void receive_cells(const BlockWork<float>& work, float weight, const float* grad_blocks,
                                                int cell_y, Memory& memory) const {
    const int row = static_cast<int>(work.strides.row), cell_row = static_cast<int>(work.strides.cell_row);
    const int to_left = static_cast<int>(work.strides.cell_column - work.strides.column);
#pragma unroll
    for (int i = 0; i < Memory::kOfThread; ++i) {
      const int number = static_cast<int>(threadIdx.x + i * blockDim.x);
      if (number >= Memory::kSpan * Memory::kOfEach) break;
      float sum = 0;
#pragma unroll
      for (int y = 0; y < P; ++y) {
        if (static_cast<uint32_t>(cell_y - y) >= static_cast<uint32_t>(work.y.blocks)) continue;
        const float* const from = grad_blocks + (at[i] + (cell_y - y) * row + y * cell_row);
#pragma unroll
        for (int x = 0; x < P; ++x)
          if (present[i] >> x & 1) sum += __ldg(from + x * to_left);
      }
      memory.received[0][number] = sum * weight;
    }
  }

  // Of four rows of pixels for linear votes: the sums over the three cells above each other that a row is in.
  __device__ __forceinline__ void receive_rows(const BlockWork<float>& work, const float* grad_blocks, int step,
                                               Memory& memory) const {
    const int block_y = step >> 1, row = static_cast<int>(work.strides.row);
    const int cell_row = static_cast<int>(work.strides.cell_row);
    const bool later = step & 1, is_block = static_cast<uint32_t>(block_y) < static_cast<uint32_t>(work.y.blocks);
    const bool has_above = static_cast<uint32_t>(block_y - 1) < static_cast<uint32_t>(work.y.blocks);
    const int own_at = block_y * row, above_at = own_at - row + cell_row;
    const int middle_at = later ? own_at + cell_row : own_at - row;
    float4 weights[kStripRows];
#pragma unroll
    for (int i = 0; i < kStripRows; ++i) weights[i] = memory.weights[later][i];
#pragma unroll
    for (int i = 0; i < Memory::kOfThread; ++i) {
      const int number = static_cast<int>(threadIdx.x + i * blockDim.x);
      if (number >= Memory::kSpan * Memory::kOfEach) break;
      const auto read_if = [&](bool is_there, int offset) {
        return is_there && present[i] ? __ldg(grad_blocks + (at[i] + offset)) : 0.0f;
      };
      const float own = read_if(is_block, own_at), above = read_if(has_above, above_at);
      const float middle = read_if(later ? is_block : has_above, middle_at);
#pragma unroll
      for (int j = 0; j < kStripRows; ++j)
        memory.received[j][number] = weights[j].x * own + weights[j].z * middle + weights[j].y * above;
    }
  }
};

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

// 1 / sqrt(x), and a smaller number below 2^-126.
__device__ __forceinline__ float inverse_root(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  y = fminf(y, 0x1p63f);
  return fmaf(y, fmaf(-0.5f * x * y, y, 0.5f), y);
#else
  return 1 / std::sqrt(x);
#endif
}

// vote: the gradient to gx and gy of a pixel, as vote_of() and hog_pixels_kernel have it.
template <typename Shape>
__device__ __forceinline__ GradientOfVote vote_gradient(const BlockWork<float>& work,
                                                        const float (&cotangents)[kStripBins / 2],
                                                        const StrongestGradient& g, const Received<Shape>& received,
                                                        const float* row) {
  if (g.square == 0) return {0, 0};
  const float inverse = inverse_root(g.square);
  if constexpr (!Shape::kLinear) {
    const bool swapped = !work.from_horizontal;
    const int bin = bin_of(cotangents, swapped ? g.gx : g.gy, swapped ? g.gy : g.gx);
    const float to_square = received(row, bin) * inverse;
    return {to_square * g.gx, to_square * g.gy};
  } else {
    const LinearVote vote = linear_vote(work, g);
    const float to_bin = received(row, vote.bin), change = received(row, vote.next) - to_bin;
    const float to_magnitude = to_bin + vote.above * inverse * change, to_angle = work.bins_per_angle * change;
    float by_sine = g.gx * inverse, by_cosine = -g.gy * inverse;  // the angle's derivatives, times the magnitude
    if (work.opencv) {
      const float s = std::fabs(g.gy), c = std::fabs(g.gx), smaller = s < c ? s : c, larger = s < c ? c : s;
      const float per = reciprocal(larger + 2.220446e-16f), a = smaller * per, u = a * a;
      const float slope = (((7 * kArc7 * u + 5 * kArc5) * u + 3 * kArc3) * u + kArc1) * per * (g.square * inverse),
                  back = slope * a;
      by_sine = flip(s > c ? back : slope, g.gx), by_cosine = -flip(s > c ? slope : back, g.gy);
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

// load: the pixel of this thread in four rows, also into the lines.
template <int CHANNELS, typename Pixel, typename Memory>
__device__ __forceinline__ void load_lines(const BlockWork<float>& work, const Pixel* column, Memory& memory,
                                           float (&pixels)[kStripRows][CHANNELS]) {
#pragma unroll
  for (int i = 0; i < kStripRows; ++i) {
    const Pixel* from = column + memory.row_at[i];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c, from += work.channels.stride) pixels[i][c] = widen(read(from));
  }
#pragma unroll
  for (int i = 0; i < kStripRows; ++i)
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) memory.lines[i][c][threadIdx.x] = pixels[i][c];
}

// How many thread blocks are to be resident on a multiprocessor: as many as leave enough registers.
template <bool SOBEL>
constexpr int kResidentPixelStrips = SOBEL ? 4 : 3;

template <typename Pixel, typename Shape, bool SOBEL, int CHANNELS>
__global__ void __launch_bounds__(kStripThreads, kResidentPixelStrips<SOBEL>)
    hog_pixel_strip_kernel(const __grid_constant__ BlockWork<float> work, const __grid_constant__ StripWeights weights,
                           const float* __restrict__ grad_blocks, float* __restrict__ grad_x) {
  using Memory = PixelsStrip<Shape, CHANNELS>;
  __shared__ Memory memory;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int thread = static_cast<int>(threadIdx.x);
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
  const bool votes = column >= 0 && column < (work.x.blocks - 1) * work.x.stride + work.x.pixels;
  const uint32_t voted_rows = votes ? (work.y.blocks - 1) * work.y.stride + work.y.pixels : 0;
  const Pixel* const pixel = static_cast<const Pixel*>(work.image.data) + work.image.plane_offset(plane) +
                             mirror(x, work.image_width) * work.image.column_stride;
  const int first_cell = (left - 1 - region.left) >> 3;
  const Receiver<Shape, CHANNELS> receiver(work, first_cell);
  const Received<Shape> received(weights, column, first_cell);
  const uint32_t tie = column >= work.tie_column ? 1 : 0;
  // A pixel beside the border stands for two, the other in the mirror.
  const bool is_side = x == 0 || x == work.image_width - 1;
  const float of_left = x == 1 ? 2.0f : 1.0f, of_right = x == work.image_width - 2 ? 2.0f : 1.0f;
  float cotangents[kStripBins / 2] = {};
  if constexpr (Shape::kLinear) {
    if (thread < kStripCell) {
      const bool later = thread >= kStripRows;
      memory.weights[later][thread % kStripRows] = {
          weights.down[0][thread], weights.down[1][thread + kLinearStart],
          later ? weights.down[1][thread - kLinearStart] : weights.down[0][thread + kStripCell], 0};
    }
  } else {
    for (int k = 0; k < kStripBins / 2; ++k) cotangents[k] = work.table[work.cotangents + 1 + k];
  }

  // Rows count from the region's first, in steps of four. A step hands on the gradient of rows 4 step to 4 step + 3, and
  // finishes the four pixels that begin one row earlier. The first step fills the state.
  const int first_row = top - region.top, begin = ((first_row - 1) >> 2) - 1, end = ((first_row + height) >> 2) + 1;
  const int channel_pixels = work.image_height * work.image_width;
  float* const to = grad_x + plane * work.channels.count * channel_pixels;
  int to_at = (region.top + begin * kStripRows - 1) * work.image_width + x;
  find_rows(work, begin * kStripRows + 1, memory);
  __syncthreads();

  ColumnState<CHANNELS> state{};
  SobelState sobel_state{};
  float across[2][CHANNELS] = {}, along[2][CHANNELS] = {};  // of the last row and the one before
  for (int step = begin; step < end; ++step) {
    float pixels[kStripRows][CHANNELS] = {};
    if (loads) load_lines<CHANNELS>(work, pixel, memory, pixels);
    if constexpr (Shape::kLinear)
      receiver.receive_rows(work, grad_blocks, step, memory);
    else if ((step & 1) == 0 || step == begin)
      receiver.receive_cells(work, weights.shared, grad_blocks, step >> 1, memory);
    __syncthreads();

    float to_gy[kStripRows] = {};
    int channel_of[kStripRows] = {};
    if (hands) {
#pragma unroll
      for (int i = 0; i < kStripRows; ++i) {
        const int row = step * kStripRows + i, y = region.top + row;
        StrongestGradient g;
        if constexpr (SOBEL)
          g = next_sobel(sobel_state, {memory.lines[i][0][thread - 1], pixels[i][0], memory.lines[i][0][thread + 1]});
        else
          g = next_gradient(state, pixels[i], memory.lines[i], thread - 1, tie);
        GradientOfVote to_vote{};
        if (static_cast<uint32_t>(row) < voted_rows)
          to_vote = vote_gradient<Shape>(work, cotangents, g, received, memory.received[Shape::kLinear ? i : 0]);
        // Across the border, a pixel and its mirror image have no difference, whatever they are.
        to_gy[i] = y == 0 || y == work.image_height - 1 ? 0.0f : to_vote.to_gy;
        channel_of[i] = g.channel;
        memory.handed[i][thread] = {is_side ? 0.0f : to_vote.to_gx,
                                    CHANNELS == 1 ? to_gy[i] : bit_cast<float>(int32_t{g.channel})};
      }
    }
    find_rows(work, (step + 1) * kStripRows + 1, memory);
    __syncthreads();

    if (!writes) continue;
#pragma unroll
    for (int i = 0; i < kStripRows; ++i, to_at += work.image_width) {
      const int row = step * kStripRows + i - 1;  // of pixels, above that of gradients
      const Handed before = memory.handed[i][thread - 1], after = memory.handed[i][thread + 1];
      const bool is_row = static_cast<uint32_t>(row - first_row) < static_cast<uint32_t>(height);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float new_across, new_along, sum = across[0][c];
        if constexpr (SOBEL) {
          const int y = region.top + row;
          const float of_upper = y == 1 ? 2.0f : 1.0f, of_lower = y == work.image_height - 2 ? 2.0f : 1.0f;
          new_across = before.gx - after.gx;
          new_along = of_left * before.other + of_right * after.other + 2 * to_gy[i];
          sum = of_upper * across[1][c] + of_lower * new_across + 2 * sum;
        } else {
          const bool from_before = CHANNELS == 1 || bit_cast<int32_t>(before.other) == c;
          const bool from_after = CHANNELS == 1 || bit_cast<int32_t>(after.other) == c;
          new_across = (from_before ? before.gx : 0.0f) - (from_after ? after.gx : 0.0f);
          new_along = channel_of[i] == c ? to_gy[i] : 0.0f;
        }
        sum += along[1][c] - new_along;
        if (is_row) to[to_at + c * channel_pixels] = sum;
        across[1][c] = across[0][c], across[0][c] = new_across;
        along[1][c] = along[0][c], along[0][c] = new_along;
      }
    }
  }
}

// True where the kernel can do what is asked for.
inline bool has_pixel_strips(const BlockWork<float>& work, const BlockPlan& plan) {
  const auto inside = [](int64_t begin, int64_t extent, int64_t size) { return begin >= 0 && begin + extent <= size; };
  const bool one_cell = plan.y.per_block == 1;
  const int64_t most = int64_t{1} << 31;  // numbers of a plane
  return fits_strips(work, plan) && (one_cell ? work.sobel && work.channels.count == 1 : !work.sobel) && !work.sqrt &&
         (!work.linear || work.from_horizontal) && inside(work.region.top, work.region.height, work.image_height) &&
         inside(work.region.left, work.region.width, work.image_width) && work.image_height > 2 &&
         work.image_width > 2 && work.size > 0 && work.size < most &&
         work.channels.count * work.image_height * work.image_width < most;
}

template <typename Pixel, typename Shape, bool SOBEL, int CHANNELS>
int launch_pixel_strips(BlockWork<float>& work, const float* grad_blocks, float* grad_x, void* stream) {
  work.width = shared_evenly(work.image_width, ceil_div(work.image_width, kStripColumns));
  const int64_t strips_across = ceil_div(work.image_width, work.width);
  const int64_t wanted = strip_blocks(kResidentPixelStrips<SOBEL>);
  work.height = shared_evenly(work.image_height, ceil_div<int64_t>(wanted, work.planes * strips_across));
  const int threads = std::max(kFewestThreads, ceil_div(work.width + 2 * kHalo, 32) * 32);
  const dim3 grid = grid_of_planes(ceil_div(work.image_height, work.height) * strips_across, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_pixel_strip_kernel<Pixel, Shape, SOBEL, CHANNELS>), grid, dim3(threads), 0, stream, work,
         strip_weights<Shape>(work), grad_blocks, grad_x);
  return static_cast<int>(cudaGetLastError());
}

template <typename Pixel>
int launch_pixel_strips(BlockWork<float>& work, const BlockPlan& plan, const float* grad_blocks, float* grad_x,
                        void* stream) {
  const auto launch = [&](auto shape) {
    using Shape = decltype(shape);
    return work.channels.count == 1 ? launch_pixel_strips<Pixel, Shape, false, 1>(work, grad_blocks, grad_x, stream)
                                    : launch_pixel_strips<Pixel, Shape, false, 3>(work, grad_blocks, grad_x, stream);
  };
  if (work.linear) return launch(Shape<2, true>{});
  if (plan.y.per_block == 1)
    return launch_pixel_strips<Pixel, Shape<1, false>, true, 1>(work, grad_blocks, grad_x, stream);
  return plan.y.per_block == 2 ? launch(Shape<2, false>{}) : launch(Shape<3, false>{});
}

}  // namespace
}  // namespace maskfeat
