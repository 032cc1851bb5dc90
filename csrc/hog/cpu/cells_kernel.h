// HOG on the CPU, one pass over the image: a row of cells is done tile by tile, and a tile in five stages that hand over
// small buffers in the first-level cache.
//
//      <------ tile: whole cells, about 256 columns ------>
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h h    load:      pixels p and their halo h, widened
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   gradient:  gx, gy and magnitude of each p
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   bin:       S_k of each column, down the rows
//    h|p p p p p p p p|p p p p p p p p| ...  |p p p p p p p p|h   histogram: S_k of each cell, across its columns
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h h    normalise: h_k = S_k - S_(k+1), divided by its norm
//
// S_k is the sum of the magnitudes of the pixels at or beyond bin edge k. A vector of columns keeps its S_k in registers
// while it walks down the rows; no pixel is ever given a bin number, and a bin without pixels is exactly zero. Sums run
// down a column, eight rows at a time, then as a tree across the columns: one order, whatever the vector width.
//
// Included by hog/cpu/cells.cpp once per instruction set, in a namespace that defines kVectorBytes: no include guard.

#include "hog/cpu/cells_load.h"

constexpr int64_t kTileColumns = 256;
constexpr int64_t kTileRows = 8;
constexpr int kPairs = 4;  // pairs of edges (k, bins - k) per walk: their sums and the total fit 16 vector registers

// The buffers of one tile, in one block of memory, and the tables that all tiles share. T computes; Line holds widened
// pixels. Rows start on cache lines and are long enough that whole vectors may be read and written past the last column;
// what is there is of no use and does no harm.
template <typename T, typename Line>
struct Tile {
  Tile(const HogParameters& hog, int64_t columns, bool patches)
      : stride(round_up(columns, (hog.cell_w == 16 ? 16 : 8) * kVectorBytes / sizeof(T)) + 32),
        neighbour_stride(patches ? (kTileRows + 2) * stride : 1) {
    const bool tall = hog.cell_h > kTileRows;
    const int64_t pairs = hog.bins / 2, rows = 3 * kTileRows + (tall ? 3 : 1) * hog.bins + 1;
    const int64_t tables = round_up(pairs + 2 * hog.gaussian_window + columns, 32);
    const int64_t line_rows = (patches ? 3 : 1) * (kTileRows + 2);
    const int64_t size = (rows * stride + tables) * sizeof(T) + line_rows * stride * sizeof(Line) + 64;
    memory = ::operator new(size, std::align_val_t{64});
    std::memset(memory, 0, size);
    gx = static_cast<T*>(memory);
    gy = gx + kTileRows * stride;
    magnitude = gy + kTileRows * stride;
    sums = magnitude + kTileRows * stride;
    above = sums + (hog.bins + 1) * stride;
    lost = above + (tall ? hog.bins * stride : 0);
    cotangent = lost + (tall ? hog.bins * stride : 0);
    window = cotangent + pairs;
    lines = reinterpret_cast<Line*>(cotangent + tables);
    for (int64_t k = 1; k <= pairs; ++k) cotangent[k - 1] = static_cast<T>(edge_cotangent(k, hog.bins));
    const int64_t side = hog.gaussian_window;
    gaussian_window(side, window);
    if (side > 0)
      for (int64_t x = side; x < side + columns; ++x) window[x] = window[x - side];
  }
  Tile(const Tile&) = delete;
  Tile& operator=(const Tile&) = delete;
  ~Tile() { ::operator delete(memory, std::align_val_t{64}); }

  const int64_t stride;            // of the rows below
  const int64_t neighbour_stride;  // from a left neighbour to the pixel, and on to the right one
  void* memory;
  T *gx, *gy, *magnitude;  // [kTileRows, stride] each
  T* sums;                 // [bins + 1, stride], the last row stays zero
  T *above, *lost;         // [bins, stride] each, of a tall cell: sums of the blocks so far, and what they lost
  T* cotangent;            // [bins / 2]
  T* window;               // [gaussian_window + columns], repeated to the right
  Line* lines;  // [kTileRows + 2, stride] with a halo, or of patches [3, kTileRows + 2, stride] without one, or
                // copies of patches [segments, kTileRows + 2, side + 2], see Pieces
};

// Turns gradients into the half plane; see half_plane() and flip().
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

// gradient: of a block of rows, turned into the half plane, and the square of its magnitude. Vectors of columns walk down
// with three rows of three neighbours in registers, so that each line is loaded once. `from`: Lines or Pieces.
template <typename T, typename Line, typename Columns>
inline void gradient_columns(const Tile<T, Line>& tile, Columns from, int64_t columns, int64_t rows, Ahead& ahead) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(Line), kWideLanes = kVectorBytes / sizeof(T);
  using Neighbours = Vector<Line, kLanes>;
  using Wide = Vector<T, kWideLanes>;
  const int64_t stride = tile.stride;
  for (int64_t x = 0; x < columns; x += kLanes) {
    ahead.step();
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

// gradient: the magnitudes of a row at (x0, y), weighted by the Gaussian window, from their squares.
template <typename T, typename Line>
inline void weigh_row(const Tile<T, Line>& tile, int64_t side, int64_t y, int64_t x0, int64_t columns,
                      T* __restrict magnitude) {
  const T* __restrict window = tile.window + x0 % side;
  const T weight = tile.window[y % side];
  for (int64_t x = 0; x < columns; ++x) magnitude[x] = std::sqrt(magnitude[x]) * (weight * window[x]);
}

// One of the walks over a block in which its edges are compared. The magnitude buffer holds squares, of which the first walk
// takes the roots, one row ahead, behind the comparisons, and keeps them for those that follow, if it is not the only one;
// or, weighted by a window, it holds magnitudes from the first.
enum class Walk { only, first, first_of_weighted, later };

// bin: the column sums S_k of a block of rows, for the edges k = first + 1 .. first + PAIRS and bins - k (with an even
// number of bins, the last pair is the edge at 90 degrees twice), and on the first walk the total S_0.
template <int PAIRS, Walk WALK, typename T, typename Line>
inline void bin_columns(const Tile<T, Line>& tile, int64_t bins, int64_t first, int64_t columns, int64_t rows,
                        Ahead& ahead) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  const int64_t stride = tile.stride;
  const auto at = [](T* from) -> Vector& { return *reinterpret_cast<Vector*>(from); };
  for (int64_t x = 0; x < columns; x += kLanes) {
    ahead.step();
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

// bin: `pairs` of edges, a number known where it is compiled.
template <Walk WALK, int PAIRS = kPairs, typename T, typename Line>
inline void bin_pairs(const Tile<T, Line>& tile, int64_t bins, int64_t first, int64_t pairs, int64_t columns,
                      int64_t rows, Ahead& ahead) {
  if (pairs == PAIRS) return bin_columns<PAIRS, WALK>(tile, bins, first, columns, rows, ahead);
  if constexpr (PAIRS > 0) bin_pairs<WALK, PAIRS - 1>(tile, bins, first, pairs, columns, rows, ahead);
}

// bin: all edges, in as few walks of about as many pairs each as registers allow.
template <typename T, typename Line>
inline void bin_all_edges(const Tile<T, Line>& tile, const HogParameters& hog, int64_t columns, int64_t rows,
                          Ahead& ahead) {
  const int64_t bins = hog.bins, pairs = bins / 2;
  int64_t first = first_share(pairs, kPairs);
  if (hog.gaussian_window > 0) {
    bin_pairs<Walk::first_of_weighted>(tile, bins, 0, first, columns, rows, ahead);
  } else if (first < pairs) {
    bin_pairs<Walk::first>(tile, bins, 0, first, columns, rows, ahead);
  } else {
    bin_pairs<Walk::only>(tile, bins, 0, first, columns, rows, ahead);
  }
  while (first < pairs) {
    const int64_t count = first_share(pairs - first, kPairs);
    bin_pairs<Walk::later>(tile, bins, first, count, columns, rows, ahead);
    first += count;
  }
}

// bin: adds the block to those above it in a tall cell, with compensation (Kahan), so that thousands of rows cost no
// precision. After every block the sums are those of the cell so far.
template <typename T, typename Line>
inline void add_block(const Tile<T, Line>& tile, int64_t bins, int64_t columns, bool first) {
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

// histogram: the sums of cells CELL_W wide, a power of two, by permutations of whole vectors.
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

// normalise: from sums S_k to histograms of length 1.
template <typename T, typename Line>
inline void normalise_cells(const Tile<T, Line>& tile, int64_t bins, int64_t cells) {
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

// Writes the histograms of the cells first .. first + cells - 1, bin after bin.
template <typename T, typename Line>
inline void write_cells(const Tile<T, Line>& tile, int64_t bins, int64_t first, int64_t cells, T* __restrict out,
                        int64_t bin_stride) {
  const T* const histograms = tile.sums + first;
  if (cells < 8) {  // not worth a call of memmove
    for (int64_t c = 0; c < cells; ++c)
      for (int64_t k = 0; k < bins; ++k) out[k * bin_stride + c] = histograms[k * tile.stride + c];
  } else {
    for (int64_t k = 0; k < bins; ++k) std::copy_n(histograms + k * tile.stride, cells, out + k * bin_stride);
  }
}

// load and gradient: a block of rows of the segments, from row `done` of the cells on. Patches that vectors fit are read where
// they are, unless they lie at the border of the image, have to be widened or are interleaved: then from a copy with a halo.
template <typename T, typename Line, typename Pixel>
inline void compute_gradients(const ImageView& image, const Tile<T, Line>& tile, const Segment<Pixel>* segments,
                              int64_t count, int64_t columns, int64_t done, int64_t rows, Ahead& ahead) {
  const int64_t apart = tile.neighbour_stride, copies = apart == 1 ? 1 : 3, width = columns + 3 - copies;
  using Source = Pieces<Line, Pixel>;
  if (copies == 3 && columns % Source::kColumns == 0) {
    Source from(columns);
    auto* copy = reinterpret_cast<typename Source::Stored*>(tile.lines);
    for (int64_t s = 0; s < count; ++s) {
      const Segment<Pixel> segment{segments[s].plane, segments[s].y0 + done, segments[s].x0};
      copy = from.add(image, segment, rows, copy);
    }
    gradient_columns(tile, from, count * columns, rows, ahead);
    return;
  }
  for (int64_t s = 0; s < count; ++s)
    for (int64_t y = 0; y < rows + 2; ++y)
      for (int64_t n = 0; n < copies; ++n)
        load_line(image, segments[s].plane, segments[s].y0 + done - 1 + y, segments[s].x0 - 1 + n, width,
                  tile.lines + y * tile.stride + n * apart + s * columns);
  gradient_columns(tile, Lines<Line>{tile.lines, tile.stride, apart}, count * columns, rows, ahead);
}

// All stages but the last write: a row of cells, from segments of `columns` pixels, whole cells each.
template <typename T, typename Line, typename Pixel>
inline void compute_cells(const ImageView& image, const HogParameters& hog, const Tile<T, Line>& tile,
                          const Segment<Pixel>* segments, int64_t count, int64_t columns, Ahead& ahead) {
  const int64_t stride = tile.stride;
  for (int64_t done = 0; done < hog.cell_h; done += kTileRows) {
    const int64_t rows = std::min(kTileRows, hog.cell_h - done);
    compute_gradients(image, tile, segments, count, columns, done, rows, ahead);
    if (hog.gaussian_window > 0)
      for (int64_t s = 0; s < count; ++s)
        for (int64_t i = 0; i < rows; ++i)
          weigh_row(tile, hog.gaussian_window, segments[s].y0 + done + i, segments[s].x0, columns,
                    tile.magnitude + i * stride + s * columns);
    bin_all_edges(tile, hog, count * columns, rows, ahead);
    if (hog.cell_h > kTileRows) add_block(tile, hog.bins, count * columns, done == 0);
  }
  const int64_t cells = count * columns / hog.cell_w;
  for (int64_t k = 0; k < hog.bins; ++k) sum_columns(tile.sums + k * stride, cells, hog.cell_w);
  normalise_cells(tile, hog.bins, cells);
}

// The vectors that the gradient and bin stages do at least, for a row of cells.
template <typename T, typename Line>
inline int64_t steps_of(const HogParameters& hog, int64_t columns) {
  const int64_t blocks = (hog.cell_h + kTileRows - 1) / kTileRows;
  return blocks * std::max<int64_t>(1, columns * static_cast<int64_t>(sizeof(Line) + sizeof(T)) / kVectorBytes);
}

template <typename T, typename Line, typename Pixel>
inline void hog_rows(const ImageView& image, const HogParameters& hog, const Pixel* pixels, T* out, int64_t begin,
                     int64_t end) {
  const int64_t cell_rows = image.height / hog.cell_h, cell_columns = image.width / hog.cell_w;
  const int64_t step = std::max<int64_t>(1, std::min(kTileColumns / hog.cell_w, cell_columns));
  const Tile<T, Line> tile(hog, step * hog.cell_w, false);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item / cell_rows, row = item % cell_rows, y0 = row * hog.cell_h;
    const Pixel* const from = pixels + image.plane_offset(plane);
    const bool bottom = row + 1 == cell_rows;  // the next row of cells is at the top of the next plane
    const Pixel* const next = bottom && item + 1 < end ? pixels + image.plane_offset(plane + 1) : from;
    const int64_t next_y0 = bottom ? 0 : y0 + hog.cell_h;
    T* out_row = out + (plane * hog.bins * cell_rows + row) * cell_columns;
    for (int64_t cell = 0; cell < cell_columns; cell += step) {
      const int64_t cells = std::min(step, cell_columns - cell), columns = cells * hog.cell_w;
      const Segment<Pixel> segment{from, y0, cell * hog.cell_w};
      Ahead ahead;
      if (item + 1 < end)
        ahead.add(image, next, next_y0, next_y0 + hog.cell_h + 1, segment.x0 - 1, segment.x0 + columns + 1);
      ahead.start(steps_of<T, Line>(hog, columns));
      compute_cells(image, hog, tile, &segment, 1, columns, ahead);
      write_cells(tile, hog.bins, 0, cells, out_row + cell, cell_rows * cell_columns);
    }
  }
}

// As many patches as fit into a tile are done side by side.
template <typename T, typename Line, typename Pixel>
inline void hog_patches(const ImageView& image, const PatchView& patches, const HogParameters& hog, const Pixel* pixels,
                        T* out, int64_t begin, int64_t end) {
  const int64_t side = patches.side, down = side / hog.cell_h, across = side / hog.cell_w,
                channels = image.lead_size[2];
  const int64_t step = std::max<int64_t>(1, std::min(kMaxSegments, kTileColumns / side));
  const Tile<T, Line> tile(hog, std::min(step, end - begin) * side, true);
  const bool interleaved = image.lead_stride[2] < image.column_stride;  // the channels then come together
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
      Ahead ahead;
      if (c + 1 == channels || !interleaved) ahead.add(image, next, next_count, side);
      ahead.start(down * steps_of<T, Line>(hog, count * side));
      for (int64_t y = 0; y < down; ++y) {
        compute_cells(image, hog, tile, now, count, side, ahead);
        for (int64_t s = 0; s < count; ++s) {
          T* token = out + (((begin + s) * channels + c) * hog.bins * down + y) * across;
          write_cells(tile, hog.bins, s * across, across, token, down * across);
          now[s].y0 += hog.cell_h;
        }
      }
    }
  }
}

// Calls run(T, Line, pixels) with values of the types that go with the dtype of the image.
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

void hog(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end) {
  with_types(image, [&](auto t, auto line, auto pixels) {
    hog_rows<decltype(t), decltype(line)>(image, hog, pixels, static_cast<decltype(t)*>(out), begin, end);
  });
}

void hog_tokens(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out, int64_t begin,
                int64_t end) {
  with_types(image, [&](auto t, auto line, auto pixels) {
    hog_patches<decltype(t), decltype(line)>(image, patches, hog, pixels, static_cast<decltype(t)*>(out), begin, end);
  });
}
