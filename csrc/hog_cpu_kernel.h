// HOG on the CPU, one pass over the image: a row of cells is done tile by tile, and a tile in five stages that hand over
// small buffers in the first-level cache.
//
//      <------ tile: whole cells, about 128 columns ------>
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
// Included by hog_cpu.cpp once per instruction set, in a namespace that defines kVectorBytes: no include guard.

constexpr int64_t kTileColumns = 128;
constexpr int64_t kTileRows = 8;
constexpr int kPairs = 4;  // pairs of edges (k, bins - k) per walk: their sums and the total fit 16 vector registers

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The buffers of one tile, in one block of memory, and the tables that all tiles share. T computes; Line holds widened
// pixels. Rows start on cache lines and end in zeros, so that whole vectors may be read and written past the last column.
template <typename T, typename Line>
struct Tile {
  Tile(const HogParameters& hog, int64_t width)
      : columns(std::max(std::min(kTileColumns, width) / hog.cell_w, int64_t{1}) * hog.cell_w),
        stride(round_up(columns + 2, 32)) {
    const bool tall = hog.cell_h > kTileRows;
    const int64_t pairs = hog.bins / 2, rows = 3 * kTileRows + (tall ? 3 : 1) * hog.bins + 2;
    const int64_t tables = round_up(pairs + 2 * hog.gaussian_window + columns, 32);
    const int64_t size = (rows * stride + tables) * sizeof(T) + (kTileRows + 2) * stride * sizeof(Line);
    memory = ::operator new(size, std::align_val_t{64});
    std::memset(memory, 0, size);
    gx = static_cast<T*>(memory);
    gy = gx + kTileRows * stride;
    magnitude = gy + kTileRows * stride;
    sums = magnitude + kTileRows * stride;
    above = sums + (hog.bins + 1) * stride;
    lost = above + (tall ? hog.bins * stride : 0);
    norm = lost + (tall ? hog.bins * stride : 0);
    cotangent = norm + stride;
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

  const int64_t columns;  // at most, in whole cells
  const int64_t stride;   // of the rows below
  void* memory;
  T *gx, *gy, *magnitude;  // [kTileRows, stride] each
  T* sums;                 // [bins + 1, stride], the last row stays zero
  T *above, *lost;         // [bins, stride] each, of a tall cell: sums of the blocks so far, and what they lost
  T* norm;                 // [stride]
  T* cotangent;            // [bins / 2]
  T* window;               // [gaussian_window + columns], repeated to the right
  Line* lines;             // [kTileRows + 2, stride]
};

// load: the line of pixels x0 - 1 .. x0 + columns of row y, mirrored at the image border.
template <typename Pixel, typename Line>
inline void load_line(const ImageView& image, const Pixel* plane, int64_t y, int64_t x0, int64_t columns,
                      Line* __restrict line) {
  const Pixel* row = plane + reflect(y, image.height) * image.row_stride;
  const int64_t step = image.column_stride;
  const int64_t begin = std::max<int64_t>(x0 - 1, 0), end = std::min(x0 + columns + 1, image.width);
  const Pixel* __restrict from = row + begin * step;
  Line* __restrict to = line + (begin - x0 + 1);
  if (step == 1) {
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[i]);
  } else if (step == 3) {  // interleaved RGB: a stride known here can be vectorised
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[3 * i]);
  } else {
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[i * step]);
  }
  if (x0 == 0) line[0] = widen(row[reflect(-1, image.width) * step]);
  if (x0 + columns == image.width) line[columns + 1] = widen(row[reflect(image.width, image.width) * step]);
}

// gradient: of one row, turned into the half plane, and the square of its magnitude.
template <typename T, typename Line>
inline void gradient_row(const Line* __restrict up, const Line* __restrict middle, const Line* __restrict down,
                         int64_t columns, T* __restrict gx, T* __restrict gy, T* __restrict square) {
  for (int64_t x = 0; x < columns; ++x) {
    const Line dx = sobel<Line>(up[x], up[x + 2], middle[x], middle[x + 2], down[x], down[x + 2]);
    const Line dy = sobel<Line>(up[x], down[x], up[x + 1], down[x + 1], up[x + 2], down[x + 2]);
    const Line side = half_plane(dx, dy);
    gx[x] = flip(dx, side);
    gy[x] = flip(dy, side);
    square[x] = gx[x] * gx[x] + gy[x] * gy[x];
  }
}

// bin: the column sums S_k of a block of rows, for the edges k = first + 1 .. first + PAIRS and bins - k (with an even
// number of bins, the last pair is the edge at 90 degrees twice), and on the first walk the total S_0. The magnitude
// buffer holds squares on a walk that does it ALL: their roots are then taken here, one row ahead, behind the comparisons.
template <int PAIRS, bool FIRST, bool ALL, typename T, typename Line>
inline void bin_columns(const Tile<T, Line>& tile, int64_t bins, int64_t first, int64_t columns, int64_t rows) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  const int64_t stride = tile.stride;
  const auto at = [](T* from) -> Vector& { return *reinterpret_cast<Vector*>(from); };
  for (int64_t x = 0; x < columns; x += kLanes) {
    T* const sums = tile.sums + x;
    Vector total{}, lower[PAIRS + 1]{}, upper[PAIRS + 1]{};
    const auto magnitude_of = [&](int64_t y) {
      Vector magnitude = at(tile.magnitude + y * stride + x);
      if (ALL)
        for (int64_t i = 0; i < kLanes; ++i) magnitude[i] = std::sqrt(magnitude[i]);
      return magnitude;
    };
    Vector next = magnitude_of(0);
    for (int64_t y = 0; y < rows; ++y) {
      const Vector gx = at(tile.gx + y * stride + x), gy = at(tile.gy + y * stride + x), minus_gy = -gy;
      const Vector magnitude = next;
      if (y + 1 < rows) next = magnitude_of(y + 1);
      if (FIRST) total += magnitude;
      for (int p = 0; p < PAIRS; ++p) {
        const Vector product = gx * tile.cotangent[first + p];
        lower[p] += product >= gy ? magnitude : Vector{};
        upper[p] += product <= minus_gy ? magnitude : Vector{};
      }
    }
    if (FIRST) at(sums) = total;
    for (int p = 0; p < PAIRS; ++p) {
      at(sums + (first + p + 1) * stride) = lower[p];
      at(sums + (bins - first - p - 1) * stride) = upper[p];
    }
  }
}

// bin: all edges, in one walk (8 and 9 bins) or in several of at most kPairs pairs.
template <typename T, typename Line>
inline void bin_all_edges(const Tile<T, Line>& tile, const HogParameters& hog, int64_t y0, int64_t x0, int64_t columns,
                          int64_t rows) {
  const int64_t bins = hog.bins, pairs = bins / 2, side = hog.gaussian_window;
  if (pairs == kPairs && side == 0) return bin_columns<kPairs, true, true>(tile, bins, 0, columns, rows);
  for (int64_t y = 0; y < rows; ++y) {
    T* __restrict magnitude = tile.magnitude + y * tile.stride;
    for (int64_t x = 0; x < columns; ++x) magnitude[x] = std::sqrt(magnitude[x]);
    if (side == 0) continue;
    const T* __restrict window = tile.window + x0 % side;
    const T weight = tile.window[(y0 + y) % side];
    for (int64_t x = 0; x < columns; ++x) magnitude[x] *= weight * window[x];
  }
  bin_columns<0, true, false>(tile, bins, 0, columns, rows);
  int64_t first = 0;
  for (; first + kPairs <= pairs; first += kPairs) bin_columns<kPairs, false, false>(tile, bins, first, columns, rows);
  for (; first < pairs; ++first) bin_columns<1, false, false>(tile, bins, first, columns, rows);
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

// histogram: adds the columns of each cell.
template <typename T>
inline void sum_columns(T* row, int64_t cells, int64_t cell_w) {
  for (int64_t cell = 0; cell < cells; ++cell) {
    T* columns = row + cell * cell_w;
    for (int64_t half = first_half(cell_w), width = cell_w; width > 1; width = half, half /= 2)
      for (int64_t i = 0; i + half < width; ++i) columns[i] += columns[i + half];
    row[cell] = columns[0];
  }
}

// The same for cells eight wide, four at a time: the last two halvings are done on their transpose.
template <typename T>
inline void sum_eight_columns(T* row, int64_t cells) {
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));
  const auto halved = [row](int64_t cell) {
    const Quad* columns = reinterpret_cast<const Quad*>(row + 8 * cell);
    return columns[0] + columns[1];
  };
  const auto both = [](Quad a, Quad b) { return SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7); };
  for (int64_t cell = 0; cell < cells; cell += 4) {
    const Quad ab = both(halved(cell), halved(cell + 1)), cd = both(halved(cell + 2), halved(cell + 3));
    *reinterpret_cast<Quad*>(row + cell) = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
  }
}

// normalise: the histograms of a row of cells, each divided by its norm.
template <typename T>
inline void normalise_cells(const T* __restrict sums, int64_t stride, int64_t bins, int64_t cells, T* __restrict norm,
                            T* __restrict out, int64_t bin_stride) {
  std::fill_n(norm, cells, T(0));
  for (int64_t k = 0; k < bins; ++k)
    for (int64_t c = 0; c < cells; ++c) {
      const T h = sums[k * stride + c] - sums[(k + 1) * stride + c];
      norm[c] += h * h;
    }
  for (int64_t c = 0; c < cells; ++c) norm[c] = inverse_norm(norm[c]);
  for (int64_t k = 0; k < bins; ++k)
    for (int64_t c = 0; c < cells; ++c)
      out[k * bin_stride + c] = (sums[k * stride + c] - sums[(k + 1) * stride + c]) * norm[c];
}

// One row of cells from column x0 on.
template <typename T, typename Line, typename Pixel>
inline void hog_cells(const ImageView& image, const HogParameters& hog, const Tile<T, Line>& tile, const Pixel* plane,
                      int64_t y0, int64_t x0, int64_t cells, T* out, int64_t bin_stride) {
  const int64_t columns = cells * hog.cell_w, stride = tile.stride;
  for (int64_t done = 0; done < hog.cell_h; done += kTileRows) {
    const int64_t rows = std::min(kTileRows, hog.cell_h - done);
    for (int64_t i = 0; i < rows + 2; ++i)
      load_line(image, plane, y0 + done + i - 1, x0, columns, tile.lines + i * stride);
    for (int64_t i = 0; i < rows; ++i) {
      const Line* up = tile.lines + i * stride;
      gradient_row(up, up + stride, up + 2 * stride, columns, tile.gx + i * stride, tile.gy + i * stride,
                   tile.magnitude + i * stride);
    }
    bin_all_edges(tile, hog, y0 + done, x0, columns, rows);
    if (hog.cell_h > kTileRows) add_block(tile, hog.bins, columns, done == 0);
  }
  for (int64_t k = 0; k < hog.bins; ++k)
    hog.cell_w == 8 ? sum_eight_columns(tile.sums + k * stride, cells)
                    : sum_columns(tile.sums + k * stride, cells, hog.cell_w);
  normalise_cells(tile.sums, stride, hog.bins, cells, tile.norm, out, bin_stride);
}

template <typename T, typename Line, typename Pixel>
inline void hog_rows(const ImageView& image, const HogParameters& hog, const Pixel* pixels, T* out, int64_t begin,
                     int64_t end) {
  const int64_t cell_rows = image.height / hog.cell_h, cell_columns = image.width / hog.cell_w;
  const Tile<T, Line> tile(hog, image.width);
  const int64_t step = tile.columns / hog.cell_w;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item / cell_rows, row = item % cell_rows;
    T* out_row = out + (plane * hog.bins * cell_rows + row) * cell_columns;
    for (int64_t cell = 0; cell < cell_columns; cell += step)
      hog_cells(image, hog, tile, pixels + image.plane_offset(plane), row * hog.cell_h, cell * hog.cell_w,
                std::min(step, cell_columns - cell), out_row + cell, cell_rows * cell_columns);
  }
}

void hog(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end) {
  const void* x = image.data;
  float* f32 = static_cast<float*>(out);
  double* f64 = static_cast<double*>(out);
  switch (image.dtype) {
    case Dtype::uint8:  // byte gradients fit 16 bits
      return hog_rows<float, int16_t>(image, hog, static_cast<const uint8_t*>(x), f32, begin, end);
    case Dtype::float16: return hog_rows<float, float>(image, hog, static_cast<const Float16*>(x), f32, begin, end);
    case Dtype::bfloat16: return hog_rows<float, float>(image, hog, static_cast<const BFloat16*>(x), f32, begin, end);
    case Dtype::float32: return hog_rows<float, float>(image, hog, static_cast<const float*>(x), f32, begin, end);
    case Dtype::float64: return hog_rows<double, double>(image, hog, static_cast<const double*>(x), f64, begin, end);
  }
}
