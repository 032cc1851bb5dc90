// Histograms of cells of 8 x 8 bytes with AVX2, sixteen cells at a time. A lane holds a cell. The neighbour of a column
// is then another register, and nothing is summed across lanes.
//
//     h p p p p p p p p h    load:      column x of all cells in a vector, in lanes of 16 bits
//     h p p p p p p p p h    gradient:  pairs (gx, gy) of p, in lanes of 32 bits
//       ...                  bin:       S_k of a column, down the rows
//     h p p p p p p p p h    histogram: S_k of the cells, as a tree over the columns
//     h h h h h h h h h h    normalise
//
// Gradients, sums and their order are those of cells_kernel.h, and so are the bits. That file includes this one for
// AVX2 only. There is no include guard.

constexpr int kSide = 8;             // pixels along a side of a cell
constexpr int kGroup = 16;           // cells that are done at once
constexpr int kHalf = kGroup / 2;    // cells whose sums are in a vector
constexpr int64_t kFewestCells = 8;  // fewer cells take less time in cells_kernel.h
constexpr int kMostBins = 2 * kPairs + 1;
constexpr int kMostGradient = 4 * 255;

// The cells of a group: their pixels, and where their histograms begin.
struct ByteCells {
  struct Halo {
    int cell;
    int64_t x;  // of a pixel beside the cell, in every row, if the cell begins at 0
  };

  const uint8_t *inside[kGroup], *above[kGroup],
      *below[kGroup];  // top left pixel, and the rows above and below the cell
  float* out[kGroup];
  Halo left[kGroup], right[kGroup];  // of cells whose neighbour is not the cell before or after them in the group
  int runs[kGroup];                  // cells whose result is not right after that of the cell before
  const uint8_t* lines[kGroup];      // pixels that are in different cache lines
  int count, lefts, rights, run_count, line_count;

  // Takes up to `left_over` cells of `walk`. What is left of the group repeats the last one.
  template <typename Walk>
  void take(int64_t left_over, Walk& walk) {
    count = static_cast<int>(std::min<int64_t>(left_over, kGroup));
    lefts = rights = run_count = line_count = 0;
    for (int i = 0; i < count; ++i) {
      const bool begins = i == 0 || walk.at_first(), ends = i == kGroup - 1 || walk.at_last();
      inside[i] = walk.pixels, above[i] = walk.pixels + walk.above, below[i] = walk.pixels + walk.below;
      out[i] = walk.out;
      if (begins) left[lefts++] = {i, walk.x_left()};
      if (ends) right[rights++] = {i, walk.x_right()};
      if (begins || ends || i == kHalf) lines[line_count++] = inside[i];
      if (i == 0 || out[i] != out[i - 1] + 1) runs[run_count++] = i;
      walk.step();
    }
    for (int i = count; i < kGroup; ++i) inside[i] = inside[i - 1], above[i] = above[i - 1], below[i] = below[i - 1];
  }
};

struct ByteTile {
  alignas(64) int16_t columns[kSide + 2][kSide + 2][kGroup];   // [row, column, cell], with the halo
  alignas(64) int32_t gradients[kSide * kSide + 1][2][kHalf];  // [column and row, half of the cells, cell]
  alignas(64) float histograms[kMostBins][kGroup];
};

// The cotangent of an edge as a fraction p / q. A gradient of bytes has reached the edge where gx p - gy q >= 0. This is
// the decision of gx * cotangent >= gy: no fraction with terms up to kMostGradient is between p / q and the cotangent.
// The two are in one interval of the Stern-Brocot tree, and all fractions inside it have a larger term.
struct EdgeFraction {
  int32_t p, q;

  explicit EdgeFraction(double cotangent) : p(cotangent == 1), q(1) {
    const double wanted = cotangent > 1 ? 1 / cotangent : cotangent;
    if (wanted == 0 || wanted == 1) return;
    int32_t below[2] = {0, 1}, above[2] = {1, 1};
    do {
      p = below[0] + above[0], q = below[1] + above[1];
      int32_t* const end = p < wanted * q ? below : above;
      end[0] = p, end[1] = q;
    } while (q <= kMostGradient);
    if (cotangent > 1) std::swap(p, q);
  }
};

// The factors of (gx, gy) for edge k = 1 .. bins / 2 and for edge bins - k.
struct ByteEdges {
  __m256i lower[kPairs], upper[kPairs];

  explicit ByteEdges(int64_t bins) {
    const auto factors = [](int32_t p, int32_t q) { return _mm256_set1_epi32((p & 0xffff) | q * 65536); };
    for (int64_t k = 1; k <= bins / 2; ++k) {
      const EdgeFraction edge(edge_cotangent(k, bins));
      lower[k - 1] = factors(edge.p, -edge.q), upper[k - 1] = factors(-edge.p, -edge.q);
    }
  }

  static const ByteEdges& of(int64_t bins) {
    static const ByteEdges edges[kMostBins] = {ByteEdges(1), ByteEdges(2), ByteEdges(3), ByteEdges(4), ByteEdges(5),
                                               ByteEdges(6), ByteEdges(7), ByteEdges(8), ByteEdges(9)};
    return edges[bins - 1];
  }
};

// load: eight bytes of one cell, and then of another.
inline __m128i two_cells(const uint8_t* first, const uint8_t* second) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first));
  return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(second)));
}

// load: a row of all cells. The lower halves of the vectors hold cells 0 to 7, the upper ones the others. Three steps of
// a transpose give pairs of columns.
inline void load_columns(const uint8_t* const (&rows)[kGroup], int64_t offset, int16_t (&columns)[kSide + 2][kGroup]) {
  __m256i cells[4];
  for (int i = 0; i < 4; ++i)
    cells[i] = _mm256_set_m128i(two_cells(rows[i + 8] + offset, rows[i + 12] + offset),
                                two_cells(rows[i] + offset, rows[i + 4] + offset));
  __m256i twos[4], fours[4], eights[4];
  for (int i = 0; i < 2; ++i) {
    twos[i] = _mm256_unpacklo_epi8(cells[2 * i], cells[2 * i + 1]);
    twos[i + 2] = _mm256_unpackhi_epi8(cells[2 * i], cells[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    fours[i] = _mm256_unpacklo_epi16(twos[2 * i], twos[2 * i + 1]);
    fours[i + 2] = _mm256_unpackhi_epi16(twos[2 * i], twos[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    eights[2 * i] = _mm256_unpacklo_epi32(fours[2 * i], fours[2 * i + 1]);
    eights[2 * i + 1] = _mm256_unpackhi_epi32(fours[2 * i], fours[2 * i + 1]);
  }
  const __m256i zero{};
  const __m256i first = _mm256_unpacklo_epi8(eights[0], zero), last = _mm256_unpackhi_epi8(eights[3], zero);
  // The neighbours left of the cells are the last columns, one lane further. The next stores mend what is too much.
  store_vector(last, columns[0] + 1), store_vector(first, columns[kSide + 1] - 1);
  for (int i = 0; i < 4; ++i) {
    store_vector(_mm256_unpacklo_epi8(eights[i], zero), columns[1 + 2 * i]);
    store_vector(_mm256_unpackhi_epi8(eights[i], zero), columns[2 + 2 * i]);
  }
}

// load: all rows, and the pixels beside cells whose neighbours are not in the group.
inline void load_cells(const ByteCells& cells, int64_t row_stride, ByteTile& tile) {
  load_columns(cells.above, 0, tile.columns[0]);
  for (int y = 0; y < kSide; ++y) load_columns(cells.inside, y * row_stride, tile.columns[1 + y]);
  load_columns(cells.below, 0, tile.columns[kSide + 1]);
  const auto load_halo = [&](const ByteCells::Halo& halo, int column) {
    const int i = halo.cell;
    tile.columns[0][column][i] = cells.above[i][halo.x];
    for (int y = 0; y < kSide; ++y) tile.columns[1 + y][column][i] = cells.inside[i][y * row_stride + halo.x];
    tile.columns[kSide + 1][column][i] = cells.below[i][halo.x];
  };
  for (int i = 0; i < cells.lefts; ++i) load_halo(cells.left[i], 0);
  for (int i = 0; i < cells.rights; ++i) load_halo(cells.right[i], kSide + 1);
}

// gradient: in the half plane, column by column. Rows of the next group are prefetched.
inline void compute_gradients(ByteTile& tile, const ByteCells& next, int64_t row_stride) {
  const __m256i one = _mm256_set1_epi16(1);
  for (int x = 0; x < kSide; ++x) {
    for (int i = 0; i < next.line_count; ++i) __builtin_prefetch(next.lines[i] + x * row_stride);
    const auto load = [&](int y, int column) { return load_vector<__m256i>(tile.columns[y][column]); };
    const auto across = [&](int y) { return _mm256_sub_epi16(load(y, x), load(y, x + 2)); };
    const auto smoothed = [&](int y) {
      const __m256i mid = load(y, x + 1);
      return _mm256_add_epi16(_mm256_add_epi16(load(y, x), load(y, x + 2)), _mm256_add_epi16(mid, mid));
    };
    __m256i up = smoothed(0), mid = smoothed(1), mid_across = across(1);
    __m256i upper_half = _mm256_add_epi16(across(0), mid_across);
#pragma GCC unroll 8
    for (int y = 0; y < kSide; ++y) {
      const __m256i down = smoothed(y + 2), down_across = across(y + 2);
      const __m256i lower_half = _mm256_add_epi16(mid_across, down_across);
      const __m256i gx = _mm256_add_epi16(upper_half, lower_half), gy = _mm256_sub_epi16(up, down);
      const __m256i side = _mm256_add_epi16(_mm256_add_epi16(gx, gx), _mm256_sign_epi16(one, gy));  // of the half plane
      const __m256i folded_x = _mm256_abs_epi16(gx), folded_y = _mm256_sign_epi16(gy, side);
      int32_t (&to)[2][kHalf] = tile.gradients[kSide * x + y];
      store_vector(_mm256_unpacklo_epi16(folded_x, folded_y), to[0]);
      store_vector(_mm256_unpackhi_epi16(folded_x, folded_y), to[1]);
      up = mid, mid = down, upper_half = lower_half, mid_across = down_across;
    }
  }
}

// S_0, then S_k for the edges k = 1 .. PAIRS, then for the edges bins - k.
template <int PAIRS>
struct ByteSums {
  __m256 of[2 * PAIRS + 1];
};

// bin: the magnitude where the gradient has reached an edge, else zero. GCC would make two instructions of the second,
// and would keep all edges in registers instead of the sums.
inline __m256 where_reached(__m256i gradient, const __m256i& edge, __m256 magnitude) {
  __m256 result;
  asm("vpmaddwd %2, %1, %0\n\tvblendvps %0, %4, %3, %0"
      : "=&x"(result)
      : "x"(gradient), "m"(edge), "x"(magnitude), "x"(_mm256_setzero_ps()));
  return result;
}

// bin: the sums of each column. The square root is taken one row ahead, so that nothing waits for it.
template <int PAIRS>
inline void sum_down(const int32_t (*gradients)[2][kHalf], const ByteEdges& edges, ByteSums<PAIRS> (&columns)[kSide]) {
  const auto magnitude_of = [](__m256i gradient) {
    return _mm256_sqrt_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(gradient, gradient)));
  };
  __m256 next = magnitude_of(load_vector<__m256i>(gradients));
  for (int x = 0; x < kSide; ++x) {
    __m256 total{}, lower[kPairs] = {total, total, total, total}, upper[kPairs] = {total, total, total, total};
#pragma GCC unroll 1  // else GCC stores all sums in every row
    for (int y = 0; y < kSide; ++y, ++gradients) {
      const __m256i gradient = load_vector<__m256i>(gradients);
      const __m256 magnitude = next;
      next = magnitude_of(load_vector<__m256i>(gradients + 1));
      total += magnitude;
      for (int p = 0; p < PAIRS; ++p) {
        lower[p] += where_reached(gradient, edges.lower[p], magnitude);
        upper[p] += where_reached(gradient, edges.upper[p], magnitude);
      }
    }
    columns[x].of[0] = total;
    for (int p = 0; p < PAIRS; ++p) columns[x].of[1 + p] = lower[p], columns[x].of[1 + PAIRS + p] = upper[p];
  }
}

// bin, histogram and normalise, for the cells of a half. Its cells 0 to 3 are cells 4 * half + 0 .. 3 of the group, and
// the others eight cells further.
template <int BINS>
inline void compute_histograms(ByteTile& tile, int half, bool sums_only) {
  constexpr int PAIRS = BINS / 2;
  ByteSums<PAIRS> columns[kSide];
  sum_down(reinterpret_cast<const int32_t (*)[2][kHalf]>(tile.gradients[0][half]), ByteEdges::of(BINS), columns);
  ByteSums<PAIRS> sums;
  for (int i = 0; i < 2 * PAIRS + 1; ++i) {
    const auto at = [&columns, i](int x) { return columns[x].of[i]; };
    sums.of[i] = ((at(0) + at(4)) + (at(2) + at(6))) + ((at(1) + at(5)) + (at(3) + at(7)));
  }
  __m256 histogram[BINS + 1], squares{};
  histogram[0] = sums.of[0], histogram[BINS] = _mm256_setzero_ps();
  for (int p = 0; p < PAIRS; ++p) histogram[p + 1] = sums.of[1 + p], histogram[BINS - p - 1] = sums.of[1 + PAIRS + p];
  for (int k = 0; k < BINS; ++k) {
    histogram[k] -= histogram[k + 1];
    squares += histogram[k] * histogram[k];
  }
  // This is inverse_norm(), whose test for what is not finite bytes do not need.
  const __m256 one = _mm256_set1_ps(1), norm = _mm256_max_ps(_mm256_sqrt_ps(squares), _mm256_set1_ps(1e-12f));
  const __m256 factor = sums_only ? one : one / norm;
  for (int k = 0; k < BINS; ++k) {
    histogram[k] *= factor;
    _mm_storeu_ps(tile.histograms[k] + 4 * half, _mm256_castps256_ps128(histogram[k]));
    _mm_storeu_ps(tile.histograms[k] + 4 * half + kHalf, _mm256_extractf128_ps(histogram[k], 1));
  }
}

// Calls compute_histograms() with the number of bins as a constant.
template <int BINS = kMostBins>
inline void compute_histograms(ByteTile& tile, int half, const CellPlan& plan) {
  if (plan.bins == BINS) return compute_histograms<BINS>(tile, half, plan.sums_only);
  if constexpr (BINS > 1) compute_histograms<BINS - 1>(tile, half, plan);
}

// Writes the histograms bin by bin. Cells that follow each other in the result are copied together.
inline void write_cells(const ByteTile& tile, const ByteCells& cells, int64_t bins, int64_t bin_stride) {
  for (int run = 0; run < cells.run_count; ++run) {
    const int first = cells.runs[run], end = run + 1 < cells.run_count ? cells.runs[run + 1] : cells.count;
    for (int64_t k = 0; k < bins; ++k) {
      const float* const from = tile.histograms[k];
      float* const to = cells.out[first] + k * bin_stride - first;
      int i = first;
      for (; i + 4 <= end; i += 4) std::memcpy(to + i, from + i, 16);
      if (i + 2 <= end) std::memcpy(to + i, from + i, 8), i += 2;
      if (i < end) to[i] = from[i];
    }
  }
}

// All stages, for `count` cells of a walk.
template <typename Walk>
inline void compute_byte_cells(Walk walk, int64_t row_stride, const CellPlan& plan, int64_t bin_stride, int64_t count) {
  ByteTile tile;
  std::memset(tile.gradients[kSide * kSide], 0, sizeof(tile.gradients[0]));  // is read ahead
  ByteCells groups[2];
  groups[0].take(count, walk);
  for (int now = 0; count > 0; now ^= 1, count -= kGroup) {
    const ByteCells& cells = groups[now];
    ByteCells& next = groups[now ^ 1];
    next.line_count = 0;
    if (count > kGroup) next.take(count - kGroup, walk);
    load_cells(cells, row_stride, tile);
    compute_gradients(tile, next, row_stride);
    for (int half = 0; half < 2; ++half) compute_histograms(tile, half, plan);
    write_cells(tile, cells, plan.bins, bin_stride);
  }
}

// Walks over cells, row by row. begin_row() of the derived class calls begin() with the next row.
template <typename Derived>
class CellWalk {
 public:
  const uint8_t* pixels = nullptr;  // top left
  int64_t above = 0, below = 0;     // from there to the rows above and below the cell
  float* out = nullptr;

  CellWalk(const ImageView& image, int64_t columns) : image(image), columns(columns) {}

  bool at_first() const { return column == 0; }
  bool at_last() const { return column + 1 == columns; }
  int64_t x_left() const { return mirror_once(x - 1, image.width) - x; }
  int64_t x_right() const { return mirror_once(x + kSide, image.width) - x; }
  void step() {
    pixels += kSide, x += kSide, ++out;
    if (++column == columns) static_cast<Derived*>(this)->begin_row();
  }

 protected:
  void begin(const uint8_t* plane, int64_t y, int64_t left, float* to) {
    const int64_t stride = image.row_stride;
    pixels = plane + y * stride + left, x = left, column = 0, out = to;
    above = (mirror_once(y - 1, image.height) - y) * stride;
    below = (mirror_once(y + kSide, image.height) - y) * stride;
  }

  const ImageView& image;
  const int64_t columns;

 private:
  int64_t x = 0, column = 0;
};

// The rows of cells from `item` on, which are counted over all planes.
class ImageWalk : public CellWalk<ImageWalk> {
 public:
  ImageWalk(const ImageView& image, int64_t bins, float* histograms, int64_t item, int64_t end)
      : CellWalk(image, image.width / kSide),
        bins(bins),
        rows(image.height / kSide),
        histograms(histograms),
        item(item),
        end(end) {
    begin_row();
  }
  void begin_row() {
    if (item == end) return;
    const int64_t plane = item / rows, row = item++ % rows;
    begin(static_cast<const uint8_t*>(image.data) + image.plane_offset(plane), kSide * row, 0,
          histograms + (plane * bins * rows + row) * columns);
  }

 private:
  const int64_t bins, rows;
  float* const histograms;
  int64_t item;
  const int64_t end;
};

// The patches from `item` on, each of them channel by channel.
class PatchWalk : public CellWalk<PatchWalk> {
 public:
  PatchWalk(const ImageView& image, const PatchView& patches, int64_t bins, float* histograms, int64_t item,
            int64_t end)
      : CellWalk(image, patches.side / kSide),
        patches(patches),
        bins(bins),
        histograms(histograms),
        item(item),
        end(end) {
    begin_row();
  }
  void begin_row() {
    if (item == end) return;
    if (channel == 0 && row == 0) {
      const int64_t b = item / patches.count, id = patches.id(b, item % patches.count);
      plane =
          static_cast<const uint8_t*>(image.data) + b * image.lead_stride[0] + patches.frame(id) * image.lead_stride[1];
      top = patches.top(id), left = patches.left(id);
    }
    const int64_t channels = image.lead_size[2];
    float* const token = histograms + (item * channels + channel) * bins * columns * columns;
    begin(plane + channel * image.lead_stride[2], top + kSide * row, left, token + row * columns);
    if (++row == columns) row = 0, ++channel;  // patches are square
    if (channel == channels) channel = 0, ++item;
  }

 private:
  const PatchView& patches;
  const int64_t bins;
  float* const histograms;
  int64_t item;
  const int64_t end;
  const uint8_t* plane = nullptr;
  int64_t channel = 0, row = 0, top = 0, left = 0;
};

inline bool has_byte_kernel(const ImageView& image, const CellPlan& plan, int64_t cells) {
  return image.dtype == Dtype::uint8 && plan.bins <= kMostBins && plan.cell_h == kSide && plan.cell_w == kSide &&
         plan.gaussian_window == 0 && image.column_stride == 1 && cells >= kFewestCells;
}

// The rows of cells [begin, end). Returns false, and does nothing, where cells_kernel.h is needed or takes less time.
inline bool byte_cell_rows(const ImageView& image, const CellPlan& plan, float* out, int64_t begin, int64_t end) {
  const int64_t rows = image.height / plan.cell_h, columns = image.width / plan.cell_w;
  if (!has_byte_kernel(image, plan, (end - begin) * columns)) return false;
  compute_byte_cells(ImageWalk(image, plan.bins, out, begin, end), image.row_stride, plan, rows * columns,
                     (end - begin) * columns);
  return true;
}

// The same for the chosen patches [begin, end).
inline bool byte_patch_cells(const ImageView& image, const PatchView& patches, const CellPlan& plan, float* out,
                             int64_t begin, int64_t end) {
  const int64_t cells = patches.side / plan.cell_h * (patches.side / plan.cell_w);  // of a channel
  const int64_t all = (end - begin) * image.lead_size[2] * cells;
  if (!has_byte_kernel(image, plan, all)) return false;
  compute_byte_cells(PatchWalk(image, patches, plan.bins, out, begin, end), image.row_stride, plan, cells, all);
  return true;
}
