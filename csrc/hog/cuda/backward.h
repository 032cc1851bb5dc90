// The second kernel of the gradient of blocks on a GPU: from the gradient to blocks before their normalisation to that
// to the pixels. A thread block does a tile of pixels, and a thread does one pixel after the other:
//
//     cells:     a thread a value   the sum over all blocks that hold the cell
//     votes:     a thread a pixel   the gradient to gx and gy, for the tile t and a halo h of one pixel
//     pixels:    a thread a pixel   the adjoint of the stencil, from gx and gy of the neighbours
//
//     h h h h h h
//     h t t t t h     The region may hold mirror images of the tile. The three steps are then done once for each of
//     h t t t t h     them, and the results are added in a fixed order.
//     h h h h h h
//
#pragma once

#include "hog/cuda/votes.h"

namespace maskfeat {
namespace {

// The mirror images of an image tile a plane. Along an axis, pixel i stands at origin + i in an upright copy, and at
// origin - i in a mirrored one.
struct MirrorCopies {
  int period, upright, first_upright, mirrored, first_mirrored;

  // Finds the copies of an axis of `size` pixels in which one of the pixels `first` to `last` stands between `lower` and
  // `upper`.
  __device__ MirrorCopies(int first, int last, int size, int lower, int upper) {
    period = size > 1 ? 2 * (size - 1) : 1;
    first_upright = -floor_of(last - lower, period);
    upright = max(0, floor_of(upper - first, period) - first_upright + 1);
    first_mirrored = -floor_of(-lower - first, period);
    mirrored = size > 1 ? max(0, floor_of(upper + last, period) - first_mirrored + 1) : 0;
  }
  __device__ int count() const { return upright + mirrored; }
  __device__ bool is_mirrored(int copy) const { return copy >= upright; }
  __device__ int origin(int copy) const {
    return period * (is_mirrored(copy) ? first_mirrored + copy - upright : first_upright + copy);
  }
  static __device__ int floor_of(int a, int b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
};

// What a copy of a tile needs of a region along an axis: the pixels of the tile and one more on each side.
struct HaloSpan {
  int first;       // the pixel before the tile, counted from the region's first
  int begin, end;  // the part that lies in the region, counted from `first`
  int cell;        // the first cell that holds some of this part
  int cells;       // how many cells hold some of it
  int lead;        // pixels from `first` to the first pixel of that cell's group

  __device__ HaloSpan(const DeviceCellAxis& axis, int first, int pixels, int size) : first(first) {
    begin = max(0, -first), end = min(pixels, size - first);
    const int before = first + begin - axis.group_end + 1;  // a group that starts here or later reaches `begin`
    const int group = before > 0 ? ceil_div(before, axis.group_step) : 0;
    cell = group * axis.group;
    const int beyond = ((first + end - 1) / axis.group_step + 1) * axis.group;
    cells = begin < end ? max(0, min(beyond, axis.cells) - cell) : 0;
    lead = group * axis.group_step - first;
  }
};

// Writes, for each pixel of a span, the number of cells that hold it, these cells, and its weights in them. There is
// room for axis.depth cells a pixel.
template <typename T>
__device__ void find_cells(const DeviceCellAxis& axis, const HaloSpan& span, const T* table, const int32_t* starts,
                           int32_t* slots, T* weights) {
  for (int i = static_cast<int>(threadIdx.x); i < span.end; i += kThreads) {
    int count = 0, phase = span.cell % axis.period;
    for (int cell = 0; cell < span.cells; ++cell) {
      const int first = span.lead + cell / axis.group * axis.group_step + starts[axis.starts + cell % axis.group];
      if (i >= first && i < first + axis.length) {
        slots[i * (axis.depth + 1) + 1 + count] = cell;
        weights[i * axis.depth + count] = table[axis.weights + phase * axis.length + i - first];
        ++count;
      }
      phase = phase + 1 < axis.period ? phase + 1 : 0;
    }
    slots[i * (axis.depth + 1)] = count;
  }
}

// The gradient to a value of a cell: the sum over all blocks that hold the cell.
template <typename T>
__device__ T cell_gradient(const BlockWork<T>& work, const T* grad_blocks, int cell_y, int cell_x, int bin) {
  const auto first_block = [](const DeviceCellAxis& axis, int cell) {
    return cell < axis.per_block ? 0 : (cell - axis.per_block) / axis.block_step + 1;
  };
  const BlockStrides& stride = work.strides;
  const int block_x = first_block(work.x, cell_x);
  T sum = 0;
  for (int y = first_block(work.y, cell_y); y < work.y.blocks && y * work.y.block_step <= cell_y; ++y)
    for (int x = block_x; x < work.x.blocks && x * work.x.block_step <= cell_x; ++x)
      sum += grad_blocks[y * stride.row + x * stride.column + (cell_y - y * work.y.block_step) * stride.cell_row +
                         (cell_x - x * work.x.block_step) * stride.cell_column + bin * stride.bin];
  return sum;
}

// From grad_blocks, the gradient to blocks before their normalisation, to grad_x.
template <typename Pixel, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    hog_pixels_kernel(const __grid_constant__ BlockWork<T> work, const T* __restrict__ grad_blocks,
                      T* __restrict__ grad_x) {
  DYNAMIC_SHARED(unsigned char, memory);
  const PixelsMemory& at = work.at.pixels;
  const ImageView& image = work.image;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int tile = static_cast<int>(blockIdx.x), tiles_across = ceil_div(work.image_width, work.width);
  const int top = tile / tiles_across * work.height, left = tile % tiles_across * work.width;
  const int height = min(work.height, work.image_height - top);
  const int width = min(work.width, work.image_width - left), wide = width + 2;
  const Pixel* const pixels = static_cast<const Pixel*>(image.data) + image.plane_offset(plane);
  grad_blocks += plane * work.size;
  grad_x += plane * work.channels.count * image.height * image.width + top * image.width + left;

  T *const table = shared_array<T>(memory, 0), *const cells = shared_array<T>(memory, at.cells);
  T *const grad_gx = shared_array<T>(memory, at.gx), *const grad_gy = shared_array<T>(memory, at.gy);
  int32_t* const starts = shared_array<int32_t>(memory, at.starts);
  int32_t* const channel_of = shared_array<int32_t>(memory, at.channel);
  int32_t* const row_slots = shared_array<int32_t>(memory, at.row_slots);
  int32_t* const column_slots = shared_array<int32_t>(memory, at.column_slots);
  T* const row_weights = shared_array<T>(memory, at.row_weights);
  T* const column_weights = shared_array<T>(memory, at.column_weights);
  int64_t* const row_at = shared_array<int64_t>(memory, at.row_at);
  int64_t* const column_at = shared_array<int64_t>(memory, at.column_at);
  load_tables(work, table, starts);
  __syncthreads();

  const Rectangle& region = work.region;
  const MirrorCopies down(top, top + height - 1, work.image_height, region.top - 1, region.top + region.height);
  const MirrorCopies across(left, left + width - 1, work.image_width, region.left - 1, region.left + region.width);
  bool fresh = true;
  const int copies_y = work.size > 0 ? down.count() : 0, copies_x = across.count();
  for (int copy_y = 0; copy_y < copies_y; ++copy_y)
    for (int copy_x = 0; copy_x < copies_x; ++copy_x) {
      const bool mirrored_y = down.is_mirrored(copy_y), mirrored_x = across.is_mirrored(copy_x);
      // The tile begins here in the plane.
      const int plane_y = down.origin(copy_y) + (mirrored_y ? 1 - top - height : top);
      const int plane_x = across.origin(copy_x) + (mirrored_x ? 1 - left - width : left);
      const HaloSpan y(work.y, plane_y - 1 - region.top, height + 2, region.height);
      const HaloSpan x(work.x, plane_x - 1 - region.left, wide, region.width);
      load_offsets(row_at, plane_y - 2, height + 4, work.image_height, image.row_stride);
      load_offsets(column_at, plane_x - 2, width + 4, work.image_width, image.column_stride);
      find_cells(work.y, y, table, starts, row_slots, row_weights);
      find_cells(work.x, x, table, starts, column_slots, column_weights);
      const int kept = work.keep_cells ? y.cells * x.cells * work.bins : 0;
      for (int i = static_cast<int>(threadIdx.x); i < kept; i += kThreads) {
        const int cell = i / work.bins;
        cells[i] = cell_gradient(work, grad_blocks, y.cell + cell / x.cells, x.cell + cell % x.cells, i % work.bins);
      }
      __syncthreads();

      for_each(height + 2, wide, [&](int row, int column) {
        PixelGradient<T> to{};
        if (row >= y.begin && row < y.end && column >= x.begin && column < x.end) {
          const bool last_of_equals = x.first + column >= work.tie_column;
          const PixelGradient<T> taken = pixel_gradient(work, pixels, row_at + row, column_at + column, last_of_equals);
          const Vote<T> vote = vote_of(work, table + work.cotangents, taken.gx, taken.gy);
          const int next = vote.bin + 1 < work.bins ? vote.bin + 1 : 0;
          T to_bin = 0, to_next = 0;
          const int32_t* const slots_y = row_slots + row * (work.y.depth + 1);
          const int32_t* const slots_x = column_slots + column * (work.x.depth + 1);
          for (int i = 0; i < slots_y[0]; ++i)
            for (int j = 0; j < slots_x[0]; ++j) {
              const int cell_y = slots_y[1 + i], cell_x = slots_x[1 + j];
              const T weight = row_weights[row * work.y.depth + i] * column_weights[column * work.x.depth + j];
              const auto gradient = [&](int bin) -> T {
                if (work.keep_cells) return cells[(cell_y * x.cells + cell_x) * work.bins + bin];
                return cell_gradient(work, grad_blocks, y.cell + cell_y, x.cell + cell_x, bin);
              };
              to_bin += weight * gradient(vote.bin);
              if (work.linear) to_next += weight * gradient(next);
            }
          if (vote.magnitude != T(0)) {
            T by_sine = 0, by_cosine = 0, to_magnitude = to_bin, to_angle = 0;
            if (work.linear) {
              to_magnitude = (T(1) - vote.above) * to_bin + vote.above * to_next;
              to_angle = work.bins_per_angle * (to_next - to_bin);
              angle_rate(work, vote, by_sine, by_cosine);
            }
            const T to_sine = to_magnitude * (vote.sine / vote.magnitude) + to_angle * by_sine;
            const T to_cosine = to_magnitude * (vote.cosine / vote.magnitude) + to_angle * by_cosine;
            to = {work.from_horizontal ? to_cosine : to_sine, work.from_horizontal ? to_sine : to_cosine,
                  taken.channel};
          }
        }
        grad_gx[row * wide + column] = to.gx;
        grad_gy[row * wide + column] = to.gy;
        channel_of[row * wide + column] = to.channel;
      });
      __syncthreads();

      for_each(height, width, [&](int row, int column) {
        // An upright copy and the mirrored one beside it share their end pixels, which are counted once.
        const bool counted = (mirrored_y && (top + row == 0 || top + row == work.image_height - 1)) ||
                             (mirrored_x && (left + column == 0 || left + column == work.image_width - 1));
        const int middle =
            ((mirrored_y ? height - 1 - row : row) + 1) * wide + (mirrored_x ? width - 1 - column : column) + 1;
        for (int64_t channel = 0; channel < work.channels.count; ++channel) {
          const auto value = [&](const T* of, int i) {
            return channel_of[middle + i] == channel ? of[middle + i] : T(0);
          };
          const auto difference = [&](const T* of, int step, int i) {
            return value(of, i - step) - value(of, i + step);
          };
          T sum = difference(grad_gx, 1, 0), other = difference(grad_gy, wide, 0);
          if (work.sobel) {
            sum = difference(grad_gx, 1, -wide) + difference(grad_gx, 1, wide) + 2 * sum;
            other = difference(grad_gy, wide, -1) + difference(grad_gy, wide, 1) + 2 * other;
          }
          sum = counted ? T(0) : sum + other;
          if (work.sqrt) {
            const Pixel* const pixel = pixels + channel * work.channels.stride + (top + row) * image.row_stride +
                                       (left + column) * image.column_stride;
            const T root = std::sqrt(static_cast<T>(widen(*pixel)));
            sum = root == T(0) ? T(0) : sum / (2 * root);
          }
          T& result = grad_x[(channel * image.height + row) * image.width + column];
          result = fresh ? sum : result + sum;
        }
      });
      fresh = false;
    }
  if (!fresh) return;
  for_each(height, width, [&](int row, int column) {
    for (int64_t channel = 0; channel < work.channels.count; ++channel)
      grad_x[(channel * image.height + row) * image.width + column] = 0;
  });
}

}  // namespace
}  // namespace maskfeat
