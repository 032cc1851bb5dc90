// Several cell sizes of one gradient field on the CPU. The kernels of cells leave the histograms of the finest cells as
// sums. A coarser cell adds those of the size before it. Each size is normalised in place once it has been read. A thread
// does this for a piece of a plane at a time, while the histograms are in the second-level cache.
//
// cells_kernel.h includes this file. There is no include guard.

constexpr int64_t kRun = 64;                // cells that are done at once
constexpr int64_t kPieceNumbers = 1 << 15;  // of the finest histograms in a piece

// Adds down * across cells: each row from left to right, and then the rows, all with Kahan's compensation. Does `count`
// cells side by side, at most kRun. ACROSS is `across`, or 0 for any.
template <int ACROSS, typename T>
inline void add_cells(const T* from, int64_t row_stride, const Scale& scale, int64_t count, T* __restrict to) {
  const int64_t across = ACROSS ? ACROSS : scale.across;
  T sum[kRun] = {}, lost[kRun] = {};
  for (int64_t y = 0; y < scale.down; ++y, from += row_stride) {
    T row[kRun], row_lost[kRun] = {};
    for (int64_t c = 0; c < count; ++c) row[c] = from[c * across];
    for (int64_t x = 1; x < across; ++x)
      for (int64_t c = 0; c < count; ++c) add_compensated(row[c], row_lost[c], from[c * across + x]);
    for (int64_t c = 0; c < count; ++c) add_compensated(sum[c], lost[c], row[c]);
  }
  std::copy_n(sum, count, to);
}

// normalise: `cells` histograms side by side.
template <typename T>
inline void normalise_in_place(T* __restrict histograms, int64_t bins, int64_t bin_stride, int64_t cells) {
  for (; cells > 0; histograms += kRun, cells -= kRun) {
    const int64_t count = std::min(kRun, cells);
    T factor[kRun] = {};
    for (int64_t k = 0; k < bins; ++k)
      for (int64_t c = 0; c < count; ++c) factor[c] += histograms[k * bin_stride + c] * histograms[k * bin_stride + c];
    for (int64_t c = 0; c < kRun; ++c) factor[c] = inverse_norm(factor[c]);
    for (int64_t k = 0; k < bins; ++k)
      for (int64_t c = 0; c < count; ++c) histograms[k * bin_stride + c] *= factor[c];
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
      const auto add = next.across == 2 ? add_cells<2, T> : add_cells<0, T>;
      for (int64_t k = 0; k < plan.bins; ++k)
        for (int64_t y = top / next.down; y < bottom / next.down; ++y)
          for (int64_t x = 0; x < next.columns; x += kRun)
            add(from + k * fine.size() + y * next.down * fine.columns + x * next.across, fine.columns, next,
                std::min(kRun, next.columns - x), to + k * next.size() + y * next.columns + x);
    }
    if (count > 1) normalise_in_place(from + top * fine.columns, plan.bins, fine.size(), (bottom - top) * fine.columns);
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
