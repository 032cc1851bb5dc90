// Several cell sizes of one gradient field on the CPU. The kernels of cells leave the histograms of the finest cells as
// sums. A coarser cell adds those of the size before it. Each size is normalised in place once it has been read. A thread
// does this for a piece of a plane at a time, while the histograms are in the second-level cache.
//
// cells_kernel.h includes this file. There is no include guard.

constexpr int64_t kPieceNumbers = 1 << 15;  // of the finest histograms in a piece, if a band has no more

// Adds rows with Kahan's compensation, of a cell or of a vector of cells.
template <typename V, typename Row>
inline V add_rows(int64_t rows, const Row& row) {
  V sum{}, lost{};
  for (int64_t y = 0; y < rows; ++y) add_compensated(sum, lost, V(row(y)));
  return sum;
}

// A row of coarser cells in one bin: the sums of down * across cells, each row from left to right, and then the rows.
template <typename T>
inline void add_cells(const T* from, int64_t row_stride, const Scale& scale, T* to) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  using V = Vector<T, kLanes>;
  constexpr auto kEach = std::make_integer_sequence<int, kLanes>();
  if (scale.across == 2 && scale.columns >= kLanes) {
    for (int64_t c = 0; c < scale.columns; c += kLanes) {
      c = std::min(c, scale.columns - kLanes);  // some are done twice at the end
      store_vector(add_rows<V>(scale.down,
                               [&](int64_t y) {
                                 const T* const cells = from + y * row_stride + 2 * c;
                                 return halve<1>(load_vector<V>(cells), load_vector<V>(cells + kLanes), kEach);
                               }),
                   to + c);
    }
    return;
  }
  for (int64_t c = 0; c < scale.columns; ++c)
    to[c] = add_rows<T>(scale.down, [&](int64_t y) {
      const T* const cells = from + y * row_stride + c * scale.across;
      T sum = cells[0], lost = 0;
      for (int64_t x = 1; x < scale.across; ++x) add_compensated(sum, lost, cells[x]);
      return sum;
    });
}

// normalise: LANES histograms side by side.
template <int64_t LANES, typename T>
inline void normalise_in_place(T* histograms, int64_t bins, int64_t bin_stride) {
  using V = Vector<T, LANES>;
  V squares{};
  for (int64_t k = 0; k < bins; ++k) {
    const V h = load_vector<V>(histograms + k * bin_stride);
    squares += h * h;
  }
  const V factor = inverse_norms(squares);
  for (int64_t k = 0; k < bins; ++k) {
    T* const at = histograms + k * bin_stride;
    store_vector<V>(load_vector<V>(at) * factor, at);
  }
}

// The rows [top, bottom) of the finest cells of a plane, and all coarser cells that end in them.
template <typename T>
void compute_piece(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t plane,
                   int64_t top, int64_t bottom) {
  const int64_t finest_rows = scales[0].rows;
  cell_rows(image, plan, scales[0].out, plane * finest_rows + top, plane * finest_rows + bottom);
  for (int64_t i = 0; i < count; ++i) {
    const Scale &fine = scales[i], &next = scales[std::min(i + 1, count - 1)];
    T* const from = static_cast<T*>(fine.out) + plane * plan.bins * fine.size();
    if (i + 1 < count) {
      T* const to = static_cast<T*>(next.out) + plane * plan.bins * next.size();
      for (int64_t k = 0; k < plan.bins; ++k)
        for (int64_t y = top / next.down; y < bottom / next.down; ++y)
          add_cells(from + k * fine.size() + y * next.down * fine.columns, fine.columns, next,
                    to + k * next.size() + y * next.columns);
    }
    if (count > 1) {
      constexpr int64_t kLanes = kVectorBytes / sizeof(T);
      int64_t cell = top * fine.columns;
      const int64_t end = bottom * fine.columns;
      for (; cell + kLanes <= end; cell += kLanes) normalise_in_place<kLanes>(from + cell, plan.bins, fine.size());
      for (; cell < end; ++cell) normalise_in_place<1>(from + cell, plan.bins, fine.size());
    }
    top /= next.down, bottom /= next.down;
  }
}

void scale_bands(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t begin,
                 int64_t end) {
  const int64_t rows = scales[0].rows, band = band_rows(scales, count), bands = ceil_div(rows, band);
  const int64_t most = std::max<int64_t>(1, kPieceNumbers / (band * scales[0].columns * plan.bins));
  while (begin < end) {
    const int64_t plane = begin / bands, first = begin % bands;
    const int64_t step = std::min({most, bands - first, end - begin});
    const int64_t top = first * band, bottom = std::min(rows, top + step * band);
    image.dtype == Dtype::float64 ? compute_piece<double>(image, plan, scales, count, plane, top, bottom)
                                  : compute_piece<float>(image, plan, scales, count, plane, top, bottom);
    begin += step;
  }
}
