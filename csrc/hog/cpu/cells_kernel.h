// Histograms of cells on the CPU, in one pass over the image. A thread does whole rows of cells, tile by tile. A tile
// goes through five stages, which hand over small buffers in the first-level cache.
//
//      <------ tile: whole cells, about 256 columns ------>
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h h    load:      pixels p and their halo h, widened
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   gradient:  gx, gy and magnitude of each p
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   bin:       S_k of each column, down the rows
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   histogram: S_k of each cell, across its columns
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h h    normalise: h_k = S_k - S_(k+1), divided by its norm
//
// S_k is the sum of the magnitudes of the pixels at or beyond bin edge k. A vector of columns keeps its S_k in
// registers while it walks down the rows. No pixel is ever given a bin number, and a bin without pixels is exactly
// zero. Sums run down a column in slices of eight rows, and then as a tree across the columns. This order is the same
// at every vector width.
//
// cells_load.h has the first stage and cells_stages.h the others. This file puts them together for whole images and for
// patches. cells.cpp includes it once per instruction set, in a namespace that defines kVectorBytes. There is no include
// guard.

#include "hog/cpu/cells_load.h"
#include "hog/cpu/cells_stages.h"

constexpr int64_t kTileColumns = 256;

// load and gradient: a slice of the segments, from row `done` of the cells on. A patch whose width fits vectors is read
// in place. It is copied with its halo where it lies at the border of the image, has to be widened, or is interleaved.
template <typename T, typename Line, typename Pixel>
inline void compute_gradients(const ImageView& image, const CellTile<T, Line>& tile, const Segment<Pixel>* segments,
                              int64_t count, int64_t columns, int64_t done, int64_t rows, Prefetcher& prefetcher) {
  const int64_t apart = tile.neighbour_stride, copies = apart == 1 ? 1 : 3, width = columns + 3 - copies;
  using Source = PatchColumns<Line, Pixel>;
  if (copies == 3 && columns % Source::kColumns == 0) {
    Source from(columns);
    auto* copy = reinterpret_cast<typename Source::Stored*>(tile.lines);
    for (int64_t s = 0; s < count; ++s) {
      const Segment<Pixel> segment{segments[s].plane, segments[s].y0 + done, segments[s].x0};
      copy = from.add(image, segment, rows, copy);
    }
    gradient_columns(tile, from, count * columns, rows, prefetcher);
    return;
  }
  for (int64_t s = 0; s < count; ++s)
    for (int64_t y = 0; y < rows + 2; ++y)
      for (int64_t n = 0; n < copies; ++n)
        load_line(image, segments[s].plane, segments[s].y0 + done - 1 + y, segments[s].x0 - 1 + n, width,
                  tile.lines + y * tile.stride + n * apart + s * columns);
  gradient_columns(tile, LineColumns<Line>{tile.lines, tile.stride, apart}, count * columns, rows, prefetcher);
}

// All stages, for a row of cells. Each segment is `columns` pixels wide and consists of whole cells. The histograms
// stay in the tile.
template <typename T, typename Line, typename Pixel>
inline void compute_cells(const ImageView& image, const CellPlan& plan, const CellTile<T, Line>& tile,
                          const Segment<Pixel>* segments, int64_t count, int64_t columns, Prefetcher& prefetcher) {
  const int64_t stride = tile.stride;
  for (int64_t done = 0; done < plan.cell_h; done += kSliceRows) {
    const int64_t rows = std::min(kSliceRows, plan.cell_h - done);
    compute_gradients(image, tile, segments, count, columns, done, rows, prefetcher);
    if (plan.gaussian_window > 0)
      for (int64_t s = 0; s < count; ++s)
        for (int64_t i = 0; i < rows; ++i)
          weigh_row(tile, plan.gaussian_window, segments[s].y0 + done + i, segments[s].x0, columns,
                    tile.magnitude + i * stride + s * columns);
    bin_all_edges(tile, plan, count * columns, rows, prefetcher);
    if (plan.cell_h > kSliceRows) add_slice(tile, plan.bins, count * columns, done == 0);
  }
  const int64_t cells = count * columns / plan.cell_w;
  for (int64_t k = 0; k < plan.bins; ++k) sum_columns(tile.sums + k * stride, cells, plan.cell_w);
  normalise_cells(tile, plan, cells);
}

// How many vectors the gradient and bin stages do at least for a row of cells.
template <typename T, typename Line>
inline int64_t steps_of(const CellPlan& plan, int64_t columns) {
  return ceil_div(plan.cell_h, kSliceRows) *
         std::max<int64_t>(1, columns * static_cast<int64_t>(sizeof(Line) + sizeof(T)) / kVectorBytes);
}

template <typename T, typename Line, typename Pixel>
inline void compute_cell_rows(const ImageView& image, const CellPlan& plan, const Pixel* pixels, T* out, int64_t begin,
                              int64_t end) {
  const int64_t cell_rows = image.height / plan.cell_h, cell_columns = image.width / plan.cell_w;
  const int64_t step = std::max<int64_t>(1, std::min(kTileColumns / plan.cell_w, cell_columns));
  const CellTile<T, Line> tile(plan, step * plan.cell_w, false);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item / cell_rows, row = item % cell_rows, y0 = row * plan.cell_h;
    const Pixel* const from = pixels + image.plane_offset(plane);
    const bool bottom = row + 1 == cell_rows;  // the next row of cells is at the top of the next plane
    const Pixel* const next = bottom && item + 1 < end ? pixels + image.plane_offset(plane + 1) : from;
    const int64_t next_y0 = bottom ? 0 : y0 + plan.cell_h;
    T* out_row = out + (plane * plan.bins * cell_rows + row) * cell_columns;
    for (int64_t cell = 0; cell < cell_columns; cell += step) {
      const int64_t cells = std::min(step, cell_columns - cell), columns = cells * plan.cell_w;
      const Segment<Pixel> segment{from, y0, cell * plan.cell_w};
      Prefetcher prefetcher;
      if (item + 1 < end)
        prefetcher.add(image, next, next_y0, next_y0 + plan.cell_h + 1, segment.x0 - 1, segment.x0 + columns + 1);
      prefetcher.start(steps_of<T, Line>(plan, columns));
      compute_cells(image, plan, tile, &segment, 1, columns, prefetcher);
      write_cells(tile, plan.bins, 0, cells, out_row + cell, cell_rows * cell_columns);
    }
  }
}

// The patches that fit into a tile are done side by side.
template <typename T, typename Line, typename Pixel>
inline void compute_patch_cells(const ImageView& image, const PatchView& patches, const CellPlan& plan,
                                const Pixel* pixels, T* out, int64_t begin, int64_t end) {
  const int64_t side = patches.side, down = side / plan.cell_h, across = side / plan.cell_w,
                channels = image.lead_size[2];
  const int64_t step = std::max<int64_t>(1, std::min(kMaxSegments, kTileColumns / side));
  const CellTile<T, Line> tile(plan, std::min(step, end - begin) * side, true);
  const bool interleaved =
      image.lead_stride[2] < image.column_stride;  // all channels of a pixel are then in the same cache line
  Segment<Pixel> now[kMaxSegments], next[kMaxSegments];
  const auto find_next = [&](int64_t first) {
    const int64_t count = std::clamp<int64_t>(end - first, 0, step);
    for (int64_t s = 0; s < count; ++s) {
      const int64_t b = (first + s) / patches.count, id = patches.id(b, (first + s) % patches.count);
      const int64_t frame = b * image.lead_stride[0] + patches.frame(id) * image.lead_stride[1];
      next[s] = {pixels + frame, patches.top(id), patches.left(id)};
    }
    return count;
  };
  for (int64_t next_count = find_next(begin); begin < end; begin += step) {
    const int64_t count = next_count;
    for (int64_t c = 0; c < channels; ++c) {
      std::copy_n(next, count, now);
      if (c + 1 < channels) {
        for (int64_t s = 0; s < count; ++s) next[s].plane += image.lead_stride[2];
      } else {
        next_count = find_next(begin + step);
      }
      Prefetcher prefetcher;
      if (c + 1 == channels || !interleaved) prefetcher.add(image, next, next_count, side);
      prefetcher.start(down * steps_of<T, Line>(plan, count * side));
      for (int64_t y = 0; y < down; ++y) {
        compute_cells(image, plan, tile, now, count, side, prefetcher);
        for (int64_t s = 0; s < count; ++s) {
          T* token = out + (((begin + s) * channels + c) * plan.bins * down + y) * across;
          write_cells(tile, plan.bins, s * across, across, token, down * across);
          now[s].y0 += plan.cell_h;
        }
      }
    }
  }
}

#ifdef AVX2_KERNEL
#include "hog/cpu/cells_8x8.h"
#else
template <typename... Arguments>
bool byte_cell_rows(const Arguments&...) {
  return false;
}
template <typename... Arguments>
bool byte_patch_cells(const Arguments&...) {
  return false;
}
#endif

// Calls run(t, line, pixels), whose types are T, Line and the pixel type that belong to the dtype of the image.
template <typename Run>
inline void with_types(const ImageView& image, const Run& run) {
  const void* x = image.data;
  switch (image.dtype) {
    case Dtype::uint8: return run(float(), int16_t(), static_cast<const uint8_t*>(x));  // byte gradients fit 16 bits
    case Dtype::float16: return run(float(), float(), static_cast<const Float16*>(x));
    case Dtype::bfloat16: return run(float(), float(), static_cast<const BFloat16*>(x));
    case Dtype::float32: return run(float(), float(), static_cast<const float*>(x));
    case Dtype::float64: return run(double(), double(), static_cast<const double*>(x));
  }
}

void cell_rows(const ImageView& image, const CellPlan& plan, void* out, int64_t begin, int64_t end) {
  if (byte_cell_rows(image, plan, static_cast<float*>(out), begin, end)) return;
  with_types(image, [&](auto t, auto line, auto pixels) {
    compute_cell_rows<decltype(t), decltype(line)>(image, plan, pixels, static_cast<decltype(t)*>(out), begin, end);
  });
}

void patch_cells(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, int64_t begin,
                 int64_t end) {
  if (byte_patch_cells(image, patches, plan, static_cast<float*>(out), begin, end)) return;
  with_types(image, [&](auto t, auto line, auto pixels) {
    compute_patch_cells<decltype(t), decltype(line)>(image, patches, plan, pixels, static_cast<decltype(t)*>(out),
                                                     begin, end);
  });
}

#include "hog/cpu/scales_kernel.h"
