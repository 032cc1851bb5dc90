// The stages of hog/cpu/cells_kernel.h after load, and the buffers of a tile that they hand over. That file includes
// this one once per instruction set. There is no include guard.

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
      Wide wide_x[kLanes / kWideLanes], wide_y[kLanes / kWideLanes];
      convert_parts(dx, wide_x), convert_parts(dy, wide_y);
      for (int64_t part = 0; part < kLanes / kWideLanes; ++part) {
        const int64_t at = y * stride + x + part * kWideLanes;
        store_vector<Wide>(wide_x[part], tile.gx + at);
        store_vector<Wide>(wide_y[part], tile.gy + at);
        store_vector<Wide>(wide_x[part] * wide_x[part] + wide_y[part] * wide_y[part], tile.magnitude + at);
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
// takes their roots, one row ahead of the comparisons, so that both overlap. After the last row comes the first one of
// the next columns. The walk keeps the roots unless it is the only one. Where a window weights the magnitudes, the buffer
// holds magnitudes from the start.
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
  const auto magnitude_of = [&](int64_t x, int64_t y) {
    Vector magnitude = at(tile.magnitude + y * stride + x);
    if (WALK == Walk::only || WALK == Walk::first)
      for (int64_t i = 0; i < kLanes; ++i) magnitude[i] = std::sqrt(magnitude[i]);
    if (WALK == Walk::first) at(tile.magnitude + y * stride + x) = magnitude;
    return magnitude;
  };
  Vector next = magnitude_of(0, 0);
  for (int64_t x = 0; x < columns; x += kLanes) {
    prefetcher.step();
    T* const sums = tile.sums + x;
    Vector total{}, lower[PAIRS + 1]{}, upper[PAIRS + 1]{};
    for (int64_t y = 0; y < rows; ++y) {
      const Vector gx = at(tile.gx + y * stride + x), gy = at(tile.gy + y * stride + x), minus_gy = -gy;
      const Vector magnitude = next;
      const bool is_last = y + 1 == rows;
      next = magnitude_of(is_last ? x + kLanes : x, is_last ? 0 : y + 1);
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
      T sum = first ? T(0) : above[x], missed = first ? T(0) : lost[x];
      add_compensated(sum, missed, sums[x]);
      sums[x] = above[x] = sum, lost[x] = missed;
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

// inverse_norm() of each lane. GCC would take the roots one by one if they stood in one loop with what follows.
template <typename V>
inline V inverse_norms(V squares) {
  for (size_t i = 0; i < sizeof(V) / sizeof(squares[0]); ++i) squares[i] = std::sqrt(squares[i]);
  const V least = V{} + std::decay_t<decltype(squares[0])>(1e-12), norm = squares < least ? least : squares;
  return 1 / finite_or_nan(norm);
}

// normalise: from the sums S_k to histograms, of length 1 unless the plan leaves sums.
template <typename T, typename Line>
inline void normalise_cells(const CellTile<T, Line>& tile, const CellPlan& plan, int64_t cells) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  using V = Vector<T, kLanes>;
  for (int64_t first = 0; first < cells; first += kLanes) {
    T* const sums = tile.sums + first;
    V squares{};
    for (int64_t k = 0; k < plan.bins; ++k) {
      const V histogram = load_vector<V>(sums + k * tile.stride) - load_vector<V>(sums + (k + 1) * tile.stride);
      store_vector(histogram, sums + k * tile.stride);
      squares += histogram * histogram;
    }
    if (plan.sums_only) continue;
    const V factor = inverse_norms(squares);
    for (int64_t k = 0; k < plan.bins; ++k)
      store_vector<V>(load_vector<V>(sums + k * tile.stride) * factor, sums + k * tile.stride);
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
