// The second kernel of the gradient of HOG of blocks on a GPU: from the values of blocks before their normalisation to
// pixels. For each tile of pixels it gathers from blocks to cells, from cells to the gx and gy of the tile and a pixel
// around it, and from those to pixels; once for every mirrored copy of the tile that the region touches.
#pragma once

#include "hog/cuda/votes.h"

namespace maskfeat {
namespace {

// Where pixels of an image stand in the plane that its mirrored copies tile: base + i, or in a turned copy base - i.
struct Copies {
  int period, straight, straight_first, turned, turned_first;

  // Those in which pixels first .. last of `size` lie in lower .. upper.
  __device__ Copies(int first, int last, int size, int lower, int upper) {
    period = size > 1 ? 2 * (size - 1) : 1;
    straight_first = -floor_of(last - lower, period);
    straight = max(0, floor_of(upper - first, period) - straight_first + 1);
    turned_first = -floor_of(-lower - first, period);
    turned = size > 1 ? max(0, floor_of(upper + last, period) - turned_first + 1) : 0;
  }
  __device__ int count() const { return straight + turned; }
  __device__ bool turns(int copy) const { return copy >= straight; }
  __device__ int base(int copy) const {
    return period * (turns(copy) ? turned_first + copy - straight : straight_first + copy);
  }
  static __device__ int floor_of(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
};

// The part of a region's axis that a copy of a tile takes its gradient from: itself and a pixel more on each side.
struct Reach {
  int first;        // pixel of the region, of the pixel before the tile
  int begin, end;   // of what lies in the region, counted from `first`
  int cell;         // the first that holds some of it
  int cells, lead;  // how many, and from `first` to the first pixel of the first group

  __device__ Reach(const Axis& axis, int first, int pixels, int size) : first(first) {
    begin = max(0, -first), end = min(pixels, size - first);
    const int before = first + begin - axis.group_end + 1;  // a group that starts here, or later, reaches `begin`
    const int group = before > 0 ? (before + axis.group_step - 1) / axis.group_step : 0;
    cell = group * axis.group;
    const int beyond = ((first + end - 1) / axis.group_step + 1) * axis.group;
    cells = begin < end ? max(0, min(beyond, axis.cells) - cell) : 0;
    lead = group * axis.group_step - first;
  }
};

// The cells that hold each pixel of a reach, axis.depth at most after their number, and its weights in them.
template <typename T>
__device__ void find_cells(const Axis& axis, const Reach& reach, const T* table, const int32_t* starts, int32_t* slots,
                           T* weights) {
  for (int i = static_cast<int>(threadIdx.x); i < reach.end; i += kThreads) {
    int count = 0, kind = reach.cell % axis.kinds;
    for (int cell = 0; cell < reach.cells; ++cell) {
      const int first = reach.lead + cell / axis.group * axis.group_step + starts[axis.starts + cell % axis.group];
      if (i >= first && i < first + axis.length) {
        slots[i * (axis.depth + 1) + 1 + count] = cell;
        weights[i * axis.depth + count] = table[axis.weights + kind * axis.length + i - first];
        ++count;
      }
      kind = kind + 1 < axis.kinds ? kind + 1 : 0;
    }
    slots[i * (axis.depth + 1)] = count;
  }
}

// The gradient to a value of a cell: of all blocks that hold it.
template <typename T>
__device__ T cell_gradient(const Work<T>& work, const T* grad_blocks, int cell_y, int cell_x, int bin) {
  const auto first_block = [](const Axis& axis, int cell) {
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

// The gradient to the pixels, from that to the values of blocks before their normalisation.
template <typename Pixel, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    hog_pixels_kernel(const __grid_constant__ Work<T> work, const T* __restrict__ grad_blocks, T* __restrict__ grad_x) {
  DYNAMIC_SHARED(unsigned char, memory);
  const PixelsMemory& at = work.at.pixels;
  const ImageView& image = work.image;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int tile = static_cast<int>(blockIdx.x), tiles_across = (work.image_width + work.width - 1) / work.width;
  const int top = tile / tiles_across * work.height, left = tile % tiles_across * work.width;
  const int height = min(work.height, work.image_height - top);
  const int width = min(work.width, work.image_width - left), wide = width + 2;
  const Pixel* const pixels = static_cast<const Pixel*>(image.data) + image.plane_offset(plane);
  grad_blocks += plane * work.size;
  grad_x += plane * work.channels.count * image.height * image.width + top * image.width + left;

  T *const table = within<T>(memory, 0), *const cells = within<T>(memory, at.cells);
  T *const grad_gx = within<T>(memory, at.gx), *const grad_gy = within<T>(memory, at.gy);
  int32_t *const starts = within<int32_t>(memory, at.starts), *const channel_of = within<int32_t>(memory, at.channel);
  int32_t* const row_slots = within<int32_t>(memory, at.row_slots);
  int32_t* const column_slots = within<int32_t>(memory, at.column_slots);
  T* const row_weights = within<T>(memory, at.row_weights);
  T* const column_weights = within<T>(memory, at.column_weights);
  int64_t *const row_at = within<int64_t>(memory, at.row_at), *const column_at = within<int64_t>(memory, at.column_at);
  load_tables(work, table, starts);
  __syncthreads();

  const Rectangle& region = work.region;
  const Copies down(top, top + height - 1, work.image_height, region.top - 1, region.top + region.height);
  const Copies across(left, left + width - 1, work.image_width, region.left - 1, region.left + region.width);
  bool fresh = true;
  const int copies_y = work.size > 0 ? down.count() : 0, copies_x = across.count();
  for (int copy_y = 0; copy_y < copies_y; ++copy_y)
    for (int copy_x = 0; copy_x < copies_x; ++copy_x) {
      const bool turns_y = down.turns(copy_y), turns_x = across.turns(copy_x);
      // Where the tile begins in the plane.
      const int plane_y = down.base(copy_y) + (turns_y ? 1 - top - height : top);
      const int plane_x = across.base(copy_x) + (turns_x ? 1 - left - width : left);
      const Reach y(work.y, plane_y - 1 - region.top, height + 2, region.height);
      const Reach x(work.x, plane_x - 1 - region.left, wide, region.width);
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
        Slope<T> to{};
        if (row >= y.begin && row < y.end && column >= x.begin && column < x.end) {
          const bool last_of_equals = x.first + column >= work.tie_column;
          const Slope<T> slope = slope_of(work, pixels, row_at + row, column_at + column, last_of_equals);
          const Vote<T> vote = vote_of(work, table + work.cotangents, slope.gx, slope.gy);
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
              to_angle = work.bins_per_turn * (to_next - to_bin);
              turn_of(work, vote, by_sine, by_cosine);
            }
            const T to_sine = to_magnitude * (vote.sine / vote.magnitude) + to_angle * by_sine;
            const T to_cosine = to_magnitude * (vote.cosine / vote.magnitude) + to_angle * by_cosine;
            to = {work.from_horizontal ? to_cosine : to_sine, work.from_horizontal ? to_sine : to_cosine,
                  slope.channel};
          }
        }
        grad_gx[row * wide + column] = to.gx;
        grad_gy[row * wide + column] = to.gy;
        channel_of[row * wide + column] = to.channel;
      });
      __syncthreads();

      for_each(height, width, [&](int row, int column) {
        // The ends of an axis are in a turned copy what they are in another.
        const bool again = (turns_y && (top + row == 0 || top + row == work.image_height - 1)) ||
                           (turns_x && (left + column == 0 || left + column == work.image_width - 1));
        const int middle =
            ((turns_y ? height - 1 - row : row) + 1) * wide + (turns_x ? width - 1 - column : column) + 1;
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
          sum = again ? T(0) : sum + other;
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
