// The gradient of blocks on the CPU, plane by plane. A thread does whole planes, in three steps:
//
//   normalise   block by block   the gradient to a block before its normalisation, added to those of its cells
//   vote        pixel by pixel   the gradient to gx and gy, gathered from the cells that hold the pixel
//   gradient    pixel by pixel   the adjoint of the stencil adds it to the neighbours
//
// The order of all sums is fixed, whatever the number of threads. blocks_kernel.h includes this file. There is no
// include guard.

// The cells along an axis that hold each pixel, and its weights there. Those of a pixel are at begin[pixel] to
// begin[pixel + 1] - 1.
struct PixelCells {
  std::vector<int64_t> begin, cell;
  std::vector<double> weight;

  PixelCells(const CellAxis& axis, int64_t size) : begin(size + 1) {
    const auto each = [&](const auto& use) {
      for (int64_t a = 0; a < axis.cells(size); ++a)
        for (int64_t i = 0; i < axis.length; ++i)
          if (const double w = axis.weights[a % axis.period * axis.length + i]; w != 0) use(axis.start(a) + i, a, w);
    };
    each([&](int64_t pixel, int64_t, double) { ++begin[pixel + 1]; });
    for (int64_t pixel = 0; pixel < size; ++pixel) begin[pixel + 1] += begin[pixel];
    cell.resize(begin[size]), weight.resize(begin[size]);
    std::vector<int64_t> next(begin);
    each([&](int64_t pixel, int64_t a, double w) { cell[next[pixel]] = a, weight[next[pixel]++] = w; });
  }
};

// grad_cells [cell rows, cell columns, bins] becomes the gradient to the cells of a plane. `raw` holds the blocks of
// the plane before their normalisation, in the layout `rows`. `grad` is the gradient to the result.
template <typename T>
inline void cells_backward(const BlockPlan& plan, const T* raw, const T* grad, std::vector<T>& grad_cells) {
  const int64_t bins = plan.bins, rows = plan.block_rows(), columns = plan.block_columns(), entries = plan.entries();
  const int64_t cell_columns = plan.x.cells(plan.region.width);
  const BlockStrides to = plan.strides();
  std::vector<double> v(entries), g(entries), scratch(entries);
  std::fill(grad_cells.begin(), grad_cells.end(), T(0));
  for (int64_t block = 0; block < rows * columns; ++block) {
    const int64_t row = block / columns, column = block % columns;
    const auto each = [&](const auto& use) {  // use(entry, its place in `grad`, its place in `grad_cells`)
      for (int64_t i = 0; i < entries; ++i) {
        const int64_t k = i % bins, cell = i / bins, y = cell / plan.x.per_block, x = cell % plan.x.per_block;
        const int64_t a = (row * plan.y.block_step + y) * cell_columns + column * plan.x.block_step + x;
        use(i, row * to.row + column * to.column + y * to.cell_row + x * to.cell_column + k * to.bin, a * bins + k);
      }
    };
    std::copy_n(raw + block * entries, entries, v.begin());
    each([&](int64_t i, int64_t from, int64_t) { g[i] = grad[from]; });
    normalise_backward(plan, v, g, scratch);
    each([&](int64_t i, int64_t, int64_t at) { grad_cells[at] += static_cast<T>(g[i]); });
  }
}

// The gradients to sine and cosine, from those to the votes for the bins below and above.
template <typename T>
inline void linear_vote_backward(const BlockPlan& plan, T sine, T cosine, T magnitude, T share, T to_below, T to_above,
                                 T& to_sine, T& to_cosine) {
  const T to_magnitude = to_below + share * (to_above - to_below);
  const double circle = static_cast<double>(plan.is_signed ? plan.bins : 2 * plan.bins);
  T by_sine, by_cosine;  // the derivatives of the place among the bins, times the magnitude
  if (plan.arithmetic == Arithmetic::opencv) {
    const T s = std::abs(sine), c = std::abs(cosine), smaller = std::min(s, c), larger = std::max(s, c);
    const T slope = opencv_octant_slope(smaller, larger) * magnitude * static_cast<T>(circle / 360);
    const T back = slope * smaller / larger;
    by_sine = s > c ? back : slope, by_cosine = s > c ? -slope : -back;
    if (cosine < 0) by_sine = -by_sine;
    if (sine < 0) by_cosine = -by_cosine;
  } else {
    const T scale = static_cast<T>(circle / (2 * kPi)) / magnitude;
    by_sine = scale * cosine, by_cosine = -scale * sine;
  }
  to_sine = to_magnitude * sine / magnitude + (to_above - to_below) * by_sine;
  to_cosine = to_magnitude * cosine / magnitude + (to_above - to_below) * by_cosine;
}

// The channel whose gradient was taken at (y, x).
template <typename T>
inline int64_t taken_channel(const BlockTile<T>& tile, int64_t y, int64_t x) {
  const bool last = x >= tile.plan.region.tie_column, is_sobel = tile.plan.gradient == Gradient::sobel;
  int64_t taken = 0;
  for (int64_t c = 0; c < tile.channels.count; ++c) {
    const PixelGradient<T> gradient = channel_gradient<T>(tile, is_sobel, c, y, x);
    if (gradient.gx != tile.gx[x] || gradient.gy != tile.gy[x]) continue;
    taken = c;
    if (!last) break;
  }
  return taken;
}

// From the gradient to the cells of a plane to grad_x [channels, H, W], the gradient to its pixels.
template <typename T>
inline void plane_backward(BlockTile<T>& tile, int64_t plane_offset, const PixelCells& down, const PixelCells& across,
                           const std::vector<T>& grad_cells, T* grad_x) {
  const BlockPlan& plan = tile.plan;
  const ImageView& image = tile.image;
  const int64_t bins = plan.bins, width = tile.at.width, plane = image.height * image.width;
  const int64_t cells = plan.x.cells(plan.region.width) * bins;  // numbers of a row of cells
  std::vector<T> row(cells);
  std::vector<int64_t> column(width + 2);
  for (int64_t x = 0; x < width + 2; ++x) column[x] = mirror(plan.region.left + x - 1, image.width);
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
    const int64_t slot = y % tile.ring_rows;
    const T* votes = tile.votes + slot * 2 * tile.vote_pitch;
    T* lines[3];
    for (int64_t i = 0; i < 3; ++i) lines[i] = grad_x + mirror(plan.region.top + y + i - 1, image.height) * image.width;
    for (int64_t x = 0; x < width; ++x) {
      const T gx = tile.gx[x], gy = tile.gy[x], magnitude = std::sqrt(gx * gx + gy * gy);
      if (votes[x] + votes[tile.vote_pitch + x] == 0) continue;  // the pixel is flat, or votes for no bin
      const int64_t below = tile.bin[slot * tile.vote_pitch + x], above = below + 1 == bins ? 0 : below + 1;
      T to_below = 0, to_above = 0;
      for (int64_t j = across.begin[x]; j < across.begin[x + 1]; ++j) {
        const T* cell = row.data() + across.cell[j] * bins;
        const T weight = static_cast<T>(across.weight[j]);
        to_below += weight * cell[below], to_above += weight * cell[above];
      }
      T to_gx = to_below * gx / magnitude, to_gy = to_below * gy / magnitude;
      if (plan.votes == Votes::linear) {
        const T share = votes[tile.vote_pitch + x] / magnitude;
        plan.from_horizontal ? linear_vote_backward(plan, gy, gx, magnitude, share, to_below, to_above, to_gy, to_gx)
                             : linear_vote_backward(plan, gx, gy, magnitude, share, to_below, to_above, to_gx, to_gy);
      }
      const int64_t at = (tile.channels.count > 1 ? taken_channel(tile, y, x) : 0) * plane;
      const auto add = [&](int64_t i, int64_t j, T value) { lines[i + 1][at + column[x + j + 1]] += value; };
      const int64_t side = plan.gradient == Gradient::sobel ? 1 : 0;  // rows and columns beside the middle one
      for (int64_t i = -side; i <= side; ++i) {
        const T weight = i == 0 && side == 1 ? T(2) : T(1);
        add(i, 1, weight * to_gx), add(i, -1, -weight * to_gx);
        add(1, i, weight * to_gy), add(-1, i, -weight * to_gy);
      }
    }
  }
}

// Turns the gradient to sqrt(p) into the gradient to the pixel p. The factor is 1 / (2 sqrt(p)), and 0 at p = 0.
template <typename T, typename Pixel>
inline void sqrt_backward(const ImageView& image, const Pixel* plane, T* grad) {
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t x = 0; x < image.width; ++x, ++grad) {
      const T root = std::sqrt(static_cast<T>(widen(plane[y * image.row_stride + x * image.column_stride])));
      *grad = root == 0 ? T(0) : *grad / (2 * root);
    }
}

template <typename T>
void planes_backward(const ImageView& image, const Channels& channels, const BlockPlan& plan, const T* grad, T* grad_x,
                     int64_t begin, int64_t end) {
  BlockPlan raw = plan;
  raw.norm = Norm::none, raw.layout = Layout::rows;
  const int64_t across = plan.block_columns(), width = (across - 1) * plan.x.stride + plan.x.pixels;
  const int64_t height = (plan.block_rows() - 1) * plan.y.stride + plan.y.pixels;
  const int64_t size = plan.size(), pixels = channels.count * image.height * image.width;
  const PixelCells cells_down(plan.y, height), cells_across(plan.x, width);
  std::vector<T> blocks(size);
  std::vector<T> grad_cells(plan.y.cells(plan.region.height) * plan.x.cells(plan.region.width) * plan.bins);
  BlockTile<T> tile(image, channels, raw, across);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t offset = image.plane_offset(plane);
    T* const to = grad_x + plane * pixels;
    tile.begin({0, across, 0, width});
    tile_rows(tile, offset, 0, plan.block_rows(), blocks.data());
    cells_backward(plan, blocks.data(), grad + plane * size, grad_cells);
    tile.begin({0, across, 0, width});
    plane_backward(tile, offset, cells_down, cells_across, grad_cells, to);
    if (plan.sqrt)
      with_pixels<T>(image, [&](const auto* from) {
        for (int64_t c = 0; c < channels.count; ++c)
          sqrt_backward(image, from + offset + c * channels.stride, to + c * image.height * image.width);
      });
  }
}

void blocks_backward(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                     void* grad_x, int64_t begin, int64_t end) {
  image.dtype == Dtype::float64 ? planes_backward(image, channels, plan, static_cast<const double*>(grad),
                                                  static_cast<double*>(grad_x), begin, end)
                                : planes_backward(image, channels, plan, static_cast<const float*>(grad),
                                                  static_cast<float*>(grad_x), begin, end);
}
