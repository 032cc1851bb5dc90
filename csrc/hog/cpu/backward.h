// The gradient of a HOG of blocks on the CPU, plane by plane: first that of the normalisation, block by block, then that of
// the votes, pixel by pixel, which gathers from the cells that hold the pixel; the adjoint of the stencil spreads it over
// the neighbours, in one order whatever the number of threads.
//
// Included by hog/cpu/blocks_kernel.h: no include guard.

// The cells along an axis that hold a pixel, and its weights there: those at begin[pixel] .. begin[pixel + 1] - 1.
struct PixelCells {
  std::vector<int64_t> begin, cell;
  std::vector<double> weight;

  PixelCells(const CellAxis& axis, int64_t size) : begin(size + 1) {
    const auto each = [&](const auto& use) {
      for (int64_t a = 0; a < axis.cells(size); ++a)
        for (int64_t i = 0; i < axis.length; ++i)
          if (const double w = axis.weights[a % axis.kinds * axis.length + i]; w != 0) use(axis.start(a) + i, a, w);
    };
    each([&](int64_t pixel, int64_t, double) { ++begin[pixel + 1]; });
    for (int64_t pixel = 0; pixel < size; ++pixel) begin[pixel + 1] += begin[pixel];
    cell.resize(begin[size]), weight.resize(begin[size]);
    std::vector<int64_t> next(begin);
    each([&](int64_t pixel, int64_t a, double w) { cell[next[pixel]] = a, weight[next[pixel]++] = w; });
  }
};

// g, the gradient to v / length(v), becomes that to v. Where `add` says so, length is |v| + eps, else sqrt(v.v + eps^2).
inline void length_backward(const std::vector<double>& v, std::vector<double>& g, double eps, bool add) {
  double square = 0, along = 0;
  for (size_t i = 0; i < v.size(); ++i) square += v[i] * v[i], along += v[i] * g[i];
  const double norm = std::sqrt(square), length = add ? norm + eps : std::sqrt(square + eps * eps);
  const double inner = add ? norm : length;
  const double turn = inner == 0 ? 0 : along / (length * length * inner);
  for (size_t i = 0; i < v.size(); ++i) g[i] = g[i] / length - v[i] * turn;
}

// g, the gradient to a normalised block, becomes that to the block v. Scratch: u, of the same size.
inline void normalise_backward(const HogBlocks& hog, const std::vector<double>& v, std::vector<double>& g,
                               std::vector<double>& u) {
  const bool add = hog.arithmetic == Arithmetic::opencv;
  double sum = 0, square = 0, along = 0;
  for (const double entry : v) sum += entry, square += entry * entry;
  switch (hog.norm) {
    case Norm::none:
      for (double& entry : g) entry += v[0] * 0;  // all of a block are NaN, or none
      return;
    case Norm::unit:
      if (!(std::sqrt(square) < hog.eps)) return length_backward(v, g, 0, false);
      for (double& entry : g) entry /= hog.eps;
      return;
    case Norm::l1_sqrt:
      for (size_t i = 0; i < v.size(); ++i) g[i] = v[i] == 0 ? 0 : g[i] / (2 * std::sqrt(v[i] / (sum + hog.eps)));
      [[fallthrough]];
    case Norm::l1:
      sum += hog.eps;
      for (size_t i = 0; i < v.size(); ++i) along += v[i] * g[i];
      for (double& entry : g) entry = (entry - along / sum) / sum;
      return;
    case Norm::l2: return length_backward(v, g, hog.eps, add);
    case Norm::l2_hys:
      const double length = add ? std::sqrt(square) + hog.eps : std::sqrt(square + hog.eps * hog.eps);
      for (size_t i = 0; i < v.size(); ++i) u[i] = v[i] / length > hog.clip ? hog.clip : v[i] / length;
      length_backward(u, g, hog.eps_again, add);
      for (size_t i = 0; i < v.size(); ++i) g[i] = v[i] / length > hog.clip ? 0 : g[i];
      return length_backward(v, g, hog.eps, add);
  }
}

// From the raw blocks of a plane, in the layout `rows`, and the gradient of its result to that of its cells
// [cell rows, cell columns, bins].
template <typename T>
inline void cells_backward(const HogBlocks& hog, const T* raw, const T* grad, std::vector<T>& grad_cells) {
  const int64_t bins = hog.bins, rows = hog.block_rows(), columns = hog.block_columns(), entries = hog.entries();
  const int64_t cell_columns = hog.x.cells(hog.region.width);
  const BlockStrides to = hog.strides();
  std::vector<double> v(entries), g(entries), scratch(entries);
  std::fill(grad_cells.begin(), grad_cells.end(), T(0));
  for (int64_t block = 0; block < rows * columns; ++block) {
    const int64_t row = block / columns, column = block % columns;
    const auto each = [&](const auto& use) {  // of the entries: index, in `grad`, and in `grad_cells`
      for (int64_t i = 0; i < entries; ++i) {
        const int64_t k = i % bins, cell = i / bins, y = cell / hog.x.per_block, x = cell % hog.x.per_block;
        const int64_t a = (row * hog.y.block_step + y) * cell_columns + column * hog.x.block_step + x;
        use(i, row * to.row + column * to.column + y * to.cell_row + x * to.cell_column + k * to.bin, a * bins + k);
      }
    };
    std::copy_n(raw + block * entries, entries, v.begin());
    each([&](int64_t i, int64_t from, int64_t) { g[i] = grad[from]; });
    normalise_backward(hog, v, g, scratch);
    each([&](int64_t i, int64_t, int64_t at) { grad_cells[at] += static_cast<T>(g[i]); });
  }
}

// The gradients to sine and cosine from those to the votes of the bins below and above.
template <typename T>
inline void linear_vote_backward(const HogBlocks& hog, T sine, T cosine, T magnitude, T share, T to_below, T to_above,
                                 T& to_sine, T& to_cosine) {
  const T to_magnitude = to_below + share * (to_above - to_below);
  const double circle = static_cast<double>(hog.is_signed ? hog.bins : 2 * hog.bins);
  T by_sine, by_cosine;  // derivatives of the place among the bins, times the magnitude
  if (hog.arithmetic == Arithmetic::opencv) {
    const T s = std::abs(sine), c = std::abs(cosine), smaller = std::min(s, c), larger = std::max(s, c);
    const T slope = opencv_octant_slope(smaller, larger) * magnitude * static_cast<T>(circle / 360);
    const T back = slope * smaller / larger;
    by_sine = s > c ? back : slope, by_cosine = s > c ? -slope : -back;
    if (cosine < 0) by_sine = -by_sine;
    if (sine < 0) by_cosine = -by_cosine;
  } else {
    const T scale = static_cast<T>(circle / (2 * 3.14159265358979323846)) / magnitude;
    by_sine = scale * cosine, by_cosine = -scale * sine;
  }
  to_sine = to_magnitude * sine / magnitude + (to_above - to_below) * by_sine;
  to_cosine = to_magnitude * cosine / magnitude + (to_above - to_below) * by_cosine;
}

// The channel whose gradient at (y, x) was taken.
template <typename T>
inline int64_t taken_channel(const Tile<T>& tile, int64_t y, int64_t x) {
  const bool last = x >= tile.hog.region.tie_column, is_sobel = tile.hog.gradient == Gradient::sobel;
  int64_t taken = 0;
  for (int64_t c = 0; c < tile.channels.count; ++c) {
    const PixelGradient<T> gradient = channel_gradient<T>(tile, is_sobel, c, y, x);
    if (gradient.x != tile.gx[x] || gradient.y != tile.gy[x]) continue;
    taken = c;
    if (!last) break;
  }
  return taken;
}

// One plane: its pixels at plane_offset, the gradient of its result, and that of its channels [channels, H, W].
template <typename T>
inline void plane_backward(Tile<T>& tile, int64_t plane_offset, const PixelCells& down, const PixelCells& across,
                           const std::vector<T>& grad_cells, T* grad_x) {
  const HogBlocks& hog = tile.hog;
  const ImageView& image = tile.image;
  const int64_t bins = hog.bins, width = tile.at.width, plane = image.height * image.width;
  const int64_t cells = hog.x.cells(hog.region.width) * bins;  // of a row
  std::vector<T> row(cells);
  std::vector<int64_t> column(width + 2);
  for (int64_t x = 0; x < width + 2; ++x) column[x] = mirror(hog.region.left + x - 1, image.width);
  std::fill_n(grad_x, tile.channels.count * plane, T(0));
  for (int64_t y = 0; y + 1 < static_cast<int64_t>(down.begin.size()); ++y) {
    if (down.begin[y] == down.begin[y + 1]) continue;
    std::fill(row.begin(), row.end(), T(0));
    for (int64_t j = down.begin[y]; j < down.begin[y + 1]; ++j) {
      const T* __restrict from = grad_cells.data() + down.cell[j] * cells;
      const T weight = static_cast<T>(down.weight[j]);
      for (int64_t i = 0; i < cells; ++i) row[i] += weight * from[i];
    }
    vote_rows(tile, plane_offset, y, y + 1);
    const int64_t slot = y % tile.kept;
    const T* votes = tile.votes + slot * 2 * tile.stride;
    T* lines[3];
    for (int64_t i = 0; i < 3; ++i) lines[i] = grad_x + mirror(hog.region.top + y + i - 1, image.height) * image.width;
    for (int64_t x = 0; x < width; ++x) {
      const T gx = tile.gx[x], gy = tile.gy[x], magnitude = std::sqrt(gx * gx + gy * gy);
      if (votes[x] + votes[tile.stride + x] == 0) continue;  // flat, or in no bin
      const int64_t below = tile.bin[slot * tile.stride + x], above = below + 1 == bins ? 0 : below + 1;
      T to_below = 0, to_above = 0;
      for (int64_t j = across.begin[x]; j < across.begin[x + 1]; ++j) {
        const T* cell = row.data() + across.cell[j] * bins;
        const T weight = static_cast<T>(across.weight[j]);
        to_below += weight * cell[below], to_above += weight * cell[above];
      }
      T to_gx = to_below * gx / magnitude, to_gy = to_below * gy / magnitude;
      if (hog.votes == Votes::linear) {
        const T share = votes[tile.stride + x] / magnitude;
        hog.from_horizontal ? linear_vote_backward(hog, gy, gx, magnitude, share, to_below, to_above, to_gy, to_gx)
                            : linear_vote_backward(hog, gx, gy, magnitude, share, to_below, to_above, to_gx, to_gy);
      }
      const int64_t at = (tile.channels.count > 1 ? taken_channel(tile, y, x) : 0) * plane;
      const auto add = [&](int64_t i, int64_t j, T value) { lines[i + 1][at + column[x + j + 1]] += value; };
      for (int64_t i = hog.gradient == Gradient::sobel ? -1 : 0; i <= (hog.gradient == Gradient::sobel); ++i) {
        const T weight = i == 0 && hog.gradient == Gradient::sobel ? T(2) : T(1);
        add(i, 1, weight * to_gx), add(i, -1, -weight * to_gx);
        add(1, i, weight * to_gy), add(-1, i, -weight * to_gy);
      }
    }
  }
}

// Of the square root of pixels: 1 / (2 sqrt(p)), but 0 at p = 0.
template <typename T, typename Pixel>
inline void sqrt_backward(const ImageView& image, const Pixel* plane, T* grad) {
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t x = 0; x < image.width; ++x, ++grad) {
      const T root = std::sqrt(static_cast<T>(widen(plane[y * image.row_stride + x * image.column_stride])));
      *grad = root == 0 ? T(0) : *grad / (2 * root);
    }
}

template <typename T>
void planes_backward(const ImageView& image, const Channels& channels, const HogBlocks& hog, const T* grad, T* grad_x,
                     int64_t begin, int64_t end) {
  HogBlocks raw = hog;
  raw.norm = Norm::none, raw.layout = Layout::rows;
  const int64_t across = hog.block_columns(), width = (across - 1) * hog.x.stride + hog.x.pixels;
  const int64_t height = (hog.block_rows() - 1) * hog.y.stride + hog.y.pixels;
  const int64_t size = hog.size(), pixels = channels.count * image.height * image.width;
  const PixelCells cells_down(hog.y, height), cells_across(hog.x, width);
  std::vector<T> blocks(size);
  std::vector<T> grad_cells(hog.y.cells(hog.region.height) * hog.x.cells(hog.region.width) * hog.bins);
  Tile<T> tile(image, channels, raw, across);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t offset = image.plane_offset(plane);
    T* const to = grad_x + plane * pixels;
    tile.begin({0, across, 0, width});
    tile_rows(tile, offset, 0, hog.block_rows(), blocks.data());
    cells_backward(hog, blocks.data(), grad + plane * size, grad_cells);
    tile.begin({0, across, 0, width});
    plane_backward(tile, offset, cells_down, cells_across, grad_cells, to);
    if (hog.sqrt)
      with_pixels<T>(image, [&](const auto* from) {
        for (int64_t c = 0; c < channels.count; ++c)
          sqrt_backward(image, from + offset + c * channels.stride, to + c * image.height * image.width);
      });
  }
}

void hog_blocks_backward(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                         void* grad_x, int64_t begin, int64_t end) {
  image.dtype == Dtype::float64
      ? planes_backward(image, channels, hog, static_cast<const double*>(grad), static_cast<double*>(grad_x), begin,
                        end)
      : planes_backward(image, channels, hog, static_cast<const float*>(grad), static_cast<float*>(grad_x), begin, end);
}
