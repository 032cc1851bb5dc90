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
// cells.cpp includes this file once per instruction set, in a namespace that defines kVectorBytes. There is no include
// guard.

#include "hog/cpu/cells_load.h"

constexpr int64_t kTileColumns = 256;
constexpr int64_t kSliceRows = 8;  // rows of a slice
constexpr int kPairs = 4;          // pairs of edges (k, bins - k) per walk: with the total they fit 16 vector registers

// The buffers of a tile, in one piece of memory, and the tables that all tiles share. Sums are of type T, widened
// pixels of type Line. Rows start on cache lines. They are long enough that whole vectors may be read and written past
// the last column. Nothing uses what is there.
template <typename T, typename Line>
struct CellTile {
  CellTile(const CellPlan& plan, int64_t columns, bool patches)
      : stride(round_up(columns, (plan.cell_w == 16 ? 16 : 8) * kVectorBytes / sizeof(T)) + 32),
        neighbour_stride(patches ? (kSliceRows + 2) * stride : 1) {
    const bool tall = plan.cell_h > kSliceRows;
    const int64_t pairs = plan.bins / 2, rows = 3 * kSliceRows + (tall ? 3 : 1) * plan.bins + 1;
    const int64_t tables = round_up(pairs + 2 * plan.gaussian_window + columns, 32);
    const int64_t line_rows = (patches ? 3 : 1) * (kSliceRows + 2);
    const int64_t size = (rows * stride + tables) * sizeof(T) + line_rows * stride * sizeof(Line) + 64;
    memory = ::operator new(size, std::align_val_t{64});
    std::memset(memory, 0, size);
    gx = static_cast<T*>(memory);
    gy = gx + kSliceRows * stride;
    magnitude = gy + kSliceRows * stride;
    sums = magnitude + kSliceRows * stride;
    above = sums + (plan.bins + 1) * stride;
    lost = above + (tall ? plan.bins * stride : 0);
    cotangent = lost + (tall ? plan.bins * stride : 0);
    window = cotangent + pairs;
    lines = reinterpret_cast<Line*>(cotangent + tables);
    for (int64_t k = 1; k <= pairs; ++k) cotangent[k - 1] = static_cast<T>(edge_cotangent(k, plan.bins));
    const int64_t side = plan.gaussian_window;
    gaussian_window(side, window);
    if (side > 0)
      for (int64_t x = side; x < side + columns; ++x) window[x] = window[x - side];
  }
  CellTile(const CellTile&) = delete;
  CellTile& operator=(const CellTile&) = delete;
  ~CellTile() { ::operator delete(memory, std::align_val_t{64}); }

  const int64_t stride;            // from each row below to the next
  const int64_t neighbour_stride;  // from a left neighbour to the pixel, and on to the right one
  void* memory;
  T *gx, *gy, *magnitude;  // [kSliceRows, stride] each
  T* sums;                 // [bins + 1, stride], the last row stays zero
  T *above, *lost;         // [bins, stride] each, for tall cells: the sums of the slices so far, and what they lost
  T* cotangent;            // [bins / 2]
  T* window;               // [gaussian_window + columns]: the window, repeated to the right
  Line* lines;  // [kSliceRows + 2, stride] with a halo. For patches [3, kSliceRows + 2, stride] without one, or copies
                // [segments, kSliceRows + 2, side + 2], see PatchColumns
};

// Negates the gradients outside the half plane. This is half_plane() and flip() for vectors.
template <typename V>
inline void fold(V& gx, V& gy) {
  using Int = decltype(gx == gy);
  if constexpr (std::is_integral_v<std::remove_reference_t<decltype(gx[0])>>) {
    const V sign = (gx + gx + (gy >> 15)) >> 15;
    gx = (gx ^ sign) - sign;
    gy = (gy ^ sign) - sign;
  } else {
    const V side = gx != 0 ? gx : gy;
    const Int sign = Int(side) & Int(-V{});
    gx = V(Int(gx) ^ sign);
    gy = V(Int(gy) ^ sign);
  }
}

// gradient: of a slice, in the half plane, and the square of its magnitude. A vector of columns walks down the rows
// with three rows of three neighbours in registers, so that each line is loaded once. `from` is LineColumns or
// PatchColumns.
template <typename T, typename Line, typename Columns>
inline void gradient_columns(const CellTile<T, Line>& tile, Columns from, int64_t columns, int64_t rows,
                             Prefetcher& prefetcher) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(Line), kWideLanes = kVectorBytes / sizeof(T);
  using Neighbours = Vector<Line, kLanes>;
  using Wide = Vector<T, kWideLanes>;
  const int64_t stride = tile.stride;
  for (int64_t x = 0; x < columns; x += kLanes) {
    prefetcher.step();
    auto column = from.next();
    Neighbours up_l = column.load(0), up_m = column.load(1), up_r = column.load(2), up_across = up_l - up_r;
    column.down();
    Neighbours mid_l = column.load(0), mid_m = column.load(1), mid_r = column.load(2), mid_across = mid_l - mid_r;
#pragma GCC unroll 2
    for (int64_t y = 0; y < rows; ++y) {
      column.down();
      const Neighbours down_l = column.load(0), down_m = column.load(1), down_r = column.load(2);
      const Neighbours down_across = down_l - down_r;
      Neighbours dx = smooth<Neighbours>(up_across, mid_across, down_across);
      Neighbours dy = smooth<Neighbours>(up_l - down_l, up_m - down_m, up_r - down_r);
      fold(dx, dy);
      Vector<Line, kWideLanes> part_x[kLanes / kWideLanes], part_y[kLanes / kWideLanes];
      std::memcpy(part_x, &dx, sizeof(dx));
      std::memcpy(part_y, &dy, sizeof(dy));
      for (int64_t part = 0; part < kLanes / kWideLanes; ++part) {
        const int64_t at = y * stride + x + part * kWideLanes;
        const Wide wide_x = convert<Wide>(part_x[part]), wide_y = convert<Wide>(part_y[part]);
        store_vector<Wide>(wide_x, tile.gx + at);
        store_vector<Wide>(wide_y, tile.gy + at);
        store_vector<Wide>(wide_x * wide_x + wide_y * wide_y, tile.magnitude + at);
      }
      up_l = mid_l, up_m = mid_m, up_r = mid_r, up_across = mid_across;
      mid_l = down_l, mid_m = down_m, mid_r = down_r, mid_across = down_across;
    }
  }
}

// gradient: from the squares of a row's magnitudes to the magnitudes, weighted by the Gaussian window. The row starts
// at (x0, y).
template <typename T, typename Line>
inline void weigh_row(const CellTile<T, Line>& tile, int64_t side, int64_t y, int64_t x0, int64_t columns,
                      T* __restrict magnitude) {
  const T* __restrict window = tile.window + x0 % side;
  const T weight = tile.window[y % side];
  for (int64_t x = 0; x < columns; ++x) magnitude[x] = std::sqrt(magnitude[x]) * (weight * window[x]);
}

// The walks over a slice, each of which compares some of the edges. The magnitude buffer holds squares. The first walk
// takes their roots, one row ahead of the comparisons, so that both overlap. It keeps the roots unless it is the only
// walk. Where a window weights the magnitudes, the buffer holds magnitudes from the start.
enum class Walk { only, first, first_of_weighted, later };

// bin: the sums S_k of each column of a slice, for the edges k = first + 1 .. first + PAIRS and the edges bins - k.
// Where the number of bins is even, the last pair is the edge at 90 degrees twice. The first walk also computes the
// total S_0.
template <int PAIRS, Walk WALK, typename T, typename Line>
inline void bin_columns(const CellTile<T, Line>& tile, int64_t bins, int64_t first, int64_t columns, int64_t rows,
                        Prefetcher& prefetcher) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  const int64_t stride = tile.stride;
  const auto at = [](T* from) -> Vector& { return *reinterpret_cast<Vector*>(from); };
  for (int64_t x = 0; x < columns; x += kLanes) {
    prefetcher.step();
    T* const sums = tile.sums + x;
    Vector total{}, lower[PAIRS + 1]{}, upper[PAIRS + 1]{};
    const auto magnitude_of = [&](int64_t y) {
      Vector magnitude = at(tile.magnitude + y * stride + x);
      if (WALK == Walk::only || WALK == Walk::first)
        for (int64_t i = 0; i < kLanes; ++i) magnitude[i] = std::sqrt(magnitude[i]);
      if (WALK == Walk::first) at(tile.magnitude + y * stride + x) = magnitude;
      return magnitude;
    };
    Vector next = magnitude_of(0);
    for (int64_t y = 0; y < rows; ++y) {
      const Vector gx = at(tile.gx + y * stride + x), gy = at(tile.gy + y * stride + x), minus_gy = -gy;
      const Vector magnitude = next;
      if (y + 1 < rows) next = magnitude_of(y + 1);
      if (WALK != Walk::later) total += magnitude;
      for (int p = 0; p < PAIRS; ++p) {
        const Vector product = gx * tile.cotangent[first + p];
        lower[p] = add_where(lower[p], product >= gy, magnitude);
        upper[p] = add_where(upper[p], product <= minus_gy, magnitude);
      }
    }
    if (WALK != Walk::later) at(sums) = total;
    for (int p = 0; p < PAIRS; ++p) {
      at(sums + (first + p + 1) * stride) = lower[p];
      at(sums + (bins - first - p - 1) * stride) = upper[p];
    }
  }
}

// bin: calls bin_columns() with the number of pairs as a constant.
template <Walk WALK, int PAIRS = kPairs, typename T, typename Line>
inline void bin_pairs(const CellTile<T, Line>& tile, int64_t bins, int64_t first, int64_t pairs, int64_t columns,
                      int64_t rows, Prefetcher& prefetcher) {
  if (pairs == PAIRS) return bin_columns<PAIRS, WALK>(tile, bins, first, columns, rows, prefetcher);
  if constexpr (PAIRS > 0) bin_pairs<WALK, PAIRS - 1>(tile, bins, first, pairs, columns, rows, prefetcher);
}

// bin: all edges, in as few walks as registers allow. The walks have about the same number of pairs.
template <typename T, typename Line>
inline void bin_all_edges(const CellTile<T, Line>& tile, const CellPlan& plan, int64_t columns, int64_t rows,
                          Prefetcher& prefetcher) {
  const int64_t bins = plan.bins, pairs = bins / 2;
  int64_t first = first_share(pairs, kPairs);
  if (plan.gaussian_window > 0) {
    bin_pairs<Walk::first_of_weighted>(tile, bins, 0, first, columns, rows, prefetcher);
  } else if (first < pairs) {
    bin_pairs<Walk::first>(tile, bins, 0, first, columns, rows, prefetcher);
  } else {
    bin_pairs<Walk::only>(tile, bins, 0, first, columns, rows, prefetcher);
  }
  while (first < pairs) {
    const int64_t count = first_share(pairs - first, kPairs);
    bin_pairs<Walk::later>(tile, bins, first, count, columns, rows, prefetcher);
    first += count;
  }
}

// bin: adds a slice to the slices above it in a tall cell. Kahan's compensation keeps the precision over thousands of
// rows. After each slice the sums are those of the cell so far.
template <typename T, typename Line>
inline void add_slice(const CellTile<T, Line>& tile, int64_t bins, int64_t columns, bool first) {
  for (int64_t k = 0; k < bins; ++k) {
    T* __restrict sums = tile.sums + k * tile.stride;
    T* __restrict above = tile.above + k * tile.stride;
    T* __restrict lost = tile.lost + k * tile.stride;
    for (int64_t x = 0; x < columns; ++x) {
      const T before = first ? T(0) : above[x], addend = sums[x] - (first ? T(0) : lost[x]);
      sums[x] = before + addend;
      lost[x] = (sums[x] - before) - addend;
      above[x] = sums[x];
    }
  }
}

// histogram: adds the columns of cells by permutations of whole vectors. CELL_W, the width of a cell, is a power of
// two.
template <int CELL_W, typename T>
inline void sum_vectors(T* row, int64_t cells) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  for (int64_t cell = 0; cell < cells; cell += kLanes)
    store_vector(reduce<CELL_W, 1, Vector<T, kLanes>>(row + CELL_W * cell), row + cell);
}

// histogram: adds the columns of each cell.
template <typename T>
inline void sum_columns(T* row, int64_t cells, int64_t cell_w) {
  if (cell_w == 4) return sum_vectors<4>(row, cells);
  if (cell_w == 8) return sum_vectors<8>(row, cells);
  if (cell_w == 16) return sum_vectors<16>(row, cells);
  for (int64_t cell = 0; cell < cells; ++cell) {
    T* columns = row + cell * cell_w;
    for (int64_t half = first_half(cell_w), width = cell_w; width > 1; width = half, half /= 2)
      for (int64_t i = 0; i + half < width; ++i) columns[i] += columns[i + half];
    row[cell] = columns[0];
  }
}

// normalise: from the sums S_k to histograms of length 1.
template <typename T, typename Line>
inline void normalise_cells(const CellTile<T, Line>& tile, int64_t bins, int64_t cells) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  for (int64_t first = 0; first < cells; first += kLanes) {
    T* const sums = tile.sums + first;
    T norm[kLanes] = {};
    for (int64_t k = 0; k < bins; ++k)
      for (int64_t c = 0; c < kLanes; ++c) {
        sums[k * tile.stride + c] -= sums[(k + 1) * tile.stride + c];
        norm[c] += sums[k * tile.stride + c] * sums[k * tile.stride + c];
      }
    for (int64_t c = 0; c < kLanes; ++c) norm[c] = inverse_norm(norm[c]);
    for (int64_t k = 0; k < bins; ++k)
      for (int64_t c = 0; c < kLanes; ++c) sums[k * tile.stride + c] *= norm[c];
  }
}

// Writes the histograms of the cells first to first + cells - 1, bin by bin.
template <typename T, typename Line>
inline void write_cells(const CellTile<T, Line>& tile, int64_t bins, int64_t first, int64_t cells, T* __restrict out,
                        int64_t bin_stride) {
  const T* const histograms = tile.sums + first;
  if (cells < 8) {  // not worth a call of memmove
    for (int64_t c = 0; c < cells; ++c)
      for (int64_t k = 0; k < bins; ++k) out[k * bin_stride + c] = histograms[k * tile.stride + c];
  } else {
    for (int64_t k = 0; k < bins; ++k) std::copy_n(histograms + k * tile.stride, cells, out + k * bin_stride);
  }
}

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
  normalise_cells(tile, plan.bins, cells);
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
  with_types(image, [&](auto t, auto line, auto pixels) {
    compute_cell_rows<decltype(t), decltype(line)>(image, plan, pixels, static_cast<decltype(t)*>(out), begin, end);
  });
}

void patch_cells(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, int64_t begin,
                 int64_t end) {
  with_types(image, [&](auto t, auto line, auto pixels) {
    compute_patch_cells<decltype(t), decltype(line)>(image, patches, plan, pixels, static_cast<decltype(t)*>(out),
                                                     begin, end);
  });
}
