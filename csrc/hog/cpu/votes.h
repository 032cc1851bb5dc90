// The first three stages of blocks on the CPU: load, gradient, vote. A thread does one row of a tile after the other, a
// vector of columns at a time. blocks_kernel.h includes this file once per instruction set. There is no include guard.

constexpr int64_t kTileColumns = 256;
constexpr int64_t kRowsAtOnce = 8;  // are summed in registers; taller cells add up such sums
constexpr int kBinsAtOnce = 9;      // fit the vector registers
constexpr int64_t kPartialSums = 16;
constexpr int64_t kRowsAhead = 8;  // a row is prefetched so many rows before it is loaded

template <typename T>
using IntOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);
template <typename T>
using VectorFor = Vector<T, kLanes<T>>;  // fills a register

// Block columns of a plane, side by side.
struct TileColumns {
  int64_t first, count;  // blocks
  int64_t left, width;   // pixels, in the region
};

template <typename T>
struct BlockTile {
  using Int = IntOf<T>;
  using V = VectorFor<T>;
  using VInt = VectorFor<Int>;
  static constexpr int64_t kL = kLanes<T>;

  const ImageView& image;
  const Channels& channels;
  const BlockPlan& plan;
  const BinEdges edges;
  int64_t stride;      // from a row of columns to the next: the widest tile, with room for whole vectors
  int64_t ring_rows;   // rows of votes in the ring
  int64_t vote_pitch;  // from a row of votes to the next
  int64_t cell_pitch;  // from a row of cells to the next
  int64_t bin_pitch;   // from the bins of a column to those of the next
  void* memory;
  T* lines;          // [channels, 3, stride]: pixels left - 1 to left + width of three rows
  T *gx, *gy;        // [stride]
  T* votes;          // [ring_rows, 2, vote_pitch]: for bin[x], and, where votes are linear, for the next bin
  Int* bin;          // [ring_rows, vote_pitch]
  T* columns;        // [bins, stride]: the sum of each column down a cell
  T* transposed;     // [stride, bin_pitch]
  T* cells;          // [per_block, cell_pitch]: rows of cells [cell, bin]
  T* blocks;         // [blocks, entries], each followed by zeros
  T *down, *across;  // weights, [period, length] each
  T* cotangents;     // [bins]
  std::vector<int64_t> cell_left,
      cell_phase;  // the first pixel of each cell of the tile, and its number modulo the period

  TileColumns at{};
  int64_t lines_end = 0, votes_end = 0;  // the row after the last one in each ring

  BlockTile(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t blocks_across)
      : image(image), channels(channels), plan(plan), edges(plan.bins, plan.is_signed) {
    const CellAxis &x = plan.x, &y = plan.y;
    const int64_t cells_across = (blocks_across - 1) * x.block_step + x.per_block;
    stride = round_up((blocks_across - 1) * x.stride + x.pixels + 2, 32) + 32;
    vote_pitch = stride;
    ring_rows = cells_are_apart(y) ? kRowsAtOnce : y.pixels;
    cell_pitch = round_up(cells_across * plan.bins, 32) + 32;
    bin_pitch = round_up(plan.bins, kL);
    int64_t size = 0;
    const auto reserve = [&size](int64_t count) {
      const int64_t begin = size;
      size += round_up(count, 32);
      return begin;
    };
    const int64_t of_lines = reserve(channels.count * 3 * stride), of_gx = reserve(stride), of_gy = reserve(stride),
                  of_votes = reserve(ring_rows * 2 * stride), of_bin = reserve(ring_rows * stride),
                  of_columns = reserve(plan.bins * stride), of_transposed = reserve(stride * bin_pitch),
                  of_cells = reserve(y.per_block * cell_pitch),
                  of_blocks = reserve(blocks_across * round_up(plan.entries(), kPartialSums) + 32),
                  of_down = reserve(y.period * y.length), of_across = reserve(x.period * x.length),
                  of_cotangents = reserve(plan.bins);
    memory = ::operator new(size * sizeof(T), std::align_val_t{64});
    std::memset(memory, 0, size * sizeof(T));
    T* const base = static_cast<T*>(memory);
    lines = base + of_lines, gx = base + of_gx, gy = base + of_gy, votes = base + of_votes;
    bin = reinterpret_cast<Int*>(base + of_bin), columns = base + of_columns, transposed = base + of_transposed;
    cells = base + of_cells, blocks = base + of_blocks, down = base + of_down, across = base + of_across;
    cotangents = base + of_cotangents;
    std::copy_n(y.weights, y.period * y.length, down);
    std::copy_n(x.weights, x.period * x.length, across);
    for (int64_t k = 1; k < plan.bins; ++k)
      cotangents[k] = static_cast<T>(edge_cotangent(k, plan.bins, plan.is_signed));
  }
  BlockTile(const BlockTile&) = delete;
  BlockTile& operator=(const BlockTile&) = delete;
  ~BlockTile() { ::operator delete(memory, std::align_val_t{64}); }

  // True where no row of pixels is in two rows of cells.
  static bool cells_are_apart(const CellAxis& y) {
    for (int64_t cell = 0; cell < y.per_block + y.period; ++cell)
      if (y.start(cell + 1) < y.start(cell) + y.length) return false;
    return true;
  }

  void begin(const TileColumns& tile) {
    at = tile;
    lines_end = votes_end = std::numeric_limits<int64_t>::min();
    cell_left.clear(), cell_phase.clear();
    const int64_t first = tile.first * plan.x.block_step;
    for (int64_t c = 0; c < (tile.count - 1) * plan.x.block_step + plan.x.per_block; ++c) {
      cell_left.push_back(plan.x.start(first + c) - tile.left);
      cell_phase.push_back((first + c) % plan.x.period);
    }
  }

  T* line(int64_t channel, int64_t y) const { return lines + (channel * 3 + (y + 3) % 3) * stride; }
};

// load: a line of pixels, mirrored at the image border and widened. Where the plan says sqrt, the line holds square
// roots. The same columns of the row `later` are prefetched.
template <typename T, typename Pixel>
inline void load_line(const BlockTile<T>& tile, const Pixel* row, const Pixel* later, T* __restrict line) {
  const int64_t step = tile.image.column_stride, width = tile.image.width;
  const int64_t left = tile.plan.region.left + tile.at.left - 1, count = tile.at.width + 2;
  const int64_t begin = std::min(std::max<int64_t>(-left, 0), count),
                end = std::max(std::min(count, width - left), begin);
  const Pixel* __restrict from = row + (left + begin) * step;
  T* __restrict to = line + begin;
  if (step >= 1 && step <= kMostApart) {
    constexpr int64_t kLine = kCacheLine / sizeof(Pixel);
    for (int64_t i = 0; i < (end - begin) * step; i += kLine) __builtin_prefetch(later + (left + begin) * step + i);
  }
  if (step == 1) {
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[i]);
  } else if (step == 3) {  // interleaved RGB: the compiler vectorises a stride that it knows
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[3 * i]);
  } else {
    for (int64_t i = 0; i < end - begin; ++i) to[i] = widen(from[i * step]);
  }
  for (int64_t i = 0; i < begin; ++i) line[i] = widen(row[mirror(left + i, width) * step]);
  for (int64_t i = end; i < count; ++i) line[i] = widen(row[mirror(left + i, width) * step]);
  if (tile.plan.sqrt)
    for (int64_t i = 0; i < count; ++i) line[i] = std::sqrt(line[i]);
}

// Calls run(pixels) with a pointer of the type that belongs to the dtype. Sums are of type T.
template <typename T, typename Run>
inline void with_pixels(const ImageView& image, const Run& run) {
  if constexpr (sizeof(T) == 8) return run(static_cast<const double*>(image.data));
  switch (image.dtype) {
    case Dtype::uint8: return run(static_cast<const uint8_t*>(image.data));
    case Dtype::float16: return run(static_cast<const Float16*>(image.data));
    case Dtype::bfloat16: return run(static_cast<const BFloat16*>(image.data));
    default: return run(static_cast<const float*>(image.data));
  }
}

template <typename T>
inline void load_lines(const BlockTile<T>& tile, int64_t plane_offset, int64_t y) {
  const ImageView& image = tile.image;
  const int64_t row = mirror(tile.plan.region.top + y, image.height),
                later = std::min(row + kRowsAhead, image.height - 1);
  with_pixels<T>(image, [&](const auto* pixels) {
    for (int64_t c = 0; c < tile.channels.count; ++c) {
      const auto* const plane = pixels + plane_offset + c * tile.channels.stride;
      load_line(tile, plane + row * image.row_stride, plane + later * image.row_stride, tile.line(c, y));
    }
  });
}

// Relative distances below which a rounded angle or length may decide differently from an exact comparison.
template <typename T>
constexpr T kRounding = 8 * std::numeric_limits<T>::epsilon();

// True where two squares of lengths are so close that their rounded roots may be equal or in the other order. It is
// false where the components have equal sizes, since their roots are then equal in any case.
template <typename V>
inline auto nearly_equal(V dx, V dy, V square, V gx, V gy, V longest) {
  constexpr auto rounding = kRounding<std::decay_t<decltype(dx[0])>>;
  dx = absolute(dx), dy = absolute(dy), gx = absolute(gx), gy = absolute(gy);
  const auto same = ((dx == gx) & (dy == gy)) | ((dx == gy) & (dy == gx));
  return (absolute(square - longest) <= rounding * longest) & ~same;
}

// Calls run(x) for each negative mark in [begin, end). Such marks are rare. Whole vectors are read.
template <typename Int, typename Run>
inline void each_negative(const Int* marks, int64_t begin, int64_t end, const Run& run) {
  for (int64_t x = begin; x < end; x += kLanes<Int>) {
    Int any = 0;
    for (int64_t i = 0; i < kLanes<Int>; ++i) any |= marks[x + i];
    if (any >= 0) continue;
    for (int64_t i = x; i < std::min(x + kLanes<Int>, end); ++i)
      if (marks[i] < 0) run(i);
  }
}

template <typename V>
struct PixelGradient {
  V gx, gy;
};

// gradient: of one channel. V is a number for the pixel at x alone, or a vector for the pixels from x on.
template <typename V, typename T>
inline PixelGradient<V> channel_gradient(const BlockTile<T>& tile, bool is_sobel, int64_t channel, int64_t y,
                                         int64_t x) {
  const T* const above = tile.line(channel, y - 1) + x;
  const T* const here = tile.line(channel, y) + x;
  const T* const below = tile.line(channel, y + 1) + x;
  const auto load = [](const T* from) { return load_vector<V>(from); };
  if (!is_sobel) return {load(here + 2) - load(here), load(below + 1) - load(above + 1)};
  const V above_l = load(above), above_r = load(above + 2), below_l = load(below), below_r = load(below + 2);
  return {sobel<V>(above_r, above_l, load(here + 2), load(here), below_r, below_l),
          sobel<V>(below_l, above_l, load(below + 1), load(above + 1), below_r, above_r)};
}

// gradient: of the channel where it is longest, as hypot() rounds lengths. The first of equal channels is taken.
template <typename T>
inline PixelGradient<T> longest_gradient(const BlockTile<T>& tile, bool is_sobel, int64_t y, int64_t x) {
  PixelGradient<T> taken = channel_gradient<T>(tile, is_sobel, 0, y, x);
  T longest = std::hypot(taken.gy, taken.gx);
  for (int64_t c = 1; c < tile.channels.count; ++c) {
    const PixelGradient<T> gradient = channel_gradient<T>(tile, is_sobel, c, y, x);
    const T length = std::hypot(gradient.gy, gradient.gx);
    if (length > longest) taken = gradient, longest = length;
  }
  return taken;
}

enum class Ties { first, last, rounded };

// gradient: of the strongest channel, for the columns [begin, end) of a row. TIES says which of equally strong channels
// is taken: the first, the last, or the one that longest_gradient() takes. A NaN counts as the strongest.
template <bool SOBEL, Ties TIES, typename T>
inline void gradient_row(const BlockTile<T>& tile, int64_t y, int64_t begin, int64_t end) {
  using V = VectorFor<T>;
  IntOf<T>* const undecided =
      tile.bin + y % tile.ring_rows * tile.vote_pitch;  // the row's bins are written there later
  for (int64_t x = begin; x < end; x += kLanes<T>) {
    V gx{}, gy{}, longest{};
    VectorFor<IntOf<T>> near{};
    for (int64_t c = 0; c < tile.channels.count; ++c) {
      const auto [dx, dy] = channel_gradient<V>(tile, SOBEL, c, y, x);
      if (c == 0) {
        gx = dx, gy = dy;
        if (tile.channels.count > 1) longest = dx * dx + dy * dy;
        continue;
      }
      const V square = dx * dx + dy * dy;
      const auto longer = (TIES == Ties::last ? square >= longest : square > longest) | (square != square);
      if (TIES == Ties::rounded) near = nearly_equal(dx, dy, square, gx, gy, longest) | (near & ~longer);
      gx = longer ? dx : gx, gy = longer ? dy : gy, longest = longer ? square : longest;
    }
    store_vector(gx, tile.gx + x);
    store_vector(gy, tile.gy + x);
    if (TIES == Ties::rounded) store_vector(near, undecided + x);
  }
  if (TIES == Ties::rounded)
    each_negative(undecided, begin, end, [&](int64_t x) {
      const PixelGradient<T> gradient = longest_gradient(tile, SOBEL, y, x);
      tile.gx[x] = gradient.gx, tile.gy[x] = gradient.gy;
    });
}

template <typename T>
inline void gradients(const BlockTile<T>& tile, int64_t y) {
  const int64_t width = tile.at.width;
  const int64_t tie = std::min(std::max<int64_t>(tile.plan.region.tie_column - tile.at.left, 0), width);
  const auto rows = [&](auto is_sobel) {
    constexpr bool SOBEL = decltype(is_sobel)::value;
    if (tile.plan.arithmetic == Arithmetic::skimage && tile.channels.count > 1)
      return gradient_row<SOBEL, Ties::rounded>(tile, y, 0, width);
    gradient_row<SOBEL, Ties::first>(tile, y, 0, tie);
    gradient_row<SOBEL, Ties::last>(tile, y, tie, width);
  };
  tile.plan.gradient == Gradient::sobel ? rows(std::true_type{}) : rows(std::false_type{});
}

// vote: the whole magnitude goes to the bin that holds the orientation. This is hard_bin() for vectors, without
// branches. scikit-image rounds angles. A pixel so close to an edge that rounding may decide is computed again by
// skimage_bin().
template <bool SKIMAGE, typename T>
inline void hard_votes(const BlockTile<T>& tile, int64_t slot) {
  using V = VectorFor<T>;
  using VInt = VectorFor<IntOf<T>>;
  const BlockPlan& plan = tile.plan;
  const T *sines = plan.from_horizontal ? tile.gy : tile.gx, *cosines = plan.from_horizontal ? tile.gx : tile.gy;
  const int64_t pairs = plan.is_signed ? 0 : (plan.bins - 1) / 2;  // the edges k and bins - k have opposite cotangents
  IntOf<T>* const bin = tile.bin + slot * tile.vote_pitch;
  T* const vote = tile.votes + slot * 2 * tile.vote_pitch;
  for (int64_t x = 0; x < tile.at.width; x += kLanes<T>) {
    V sine = load_vector<V>(sines + x), cosine = load_vector<V>(cosines + x);
    V magnitude = sine * sine + cosine * cosine;
    for (int64_t i = 0; i < kLanes<T>; ++i) magnitude[i] = std::sqrt(magnitude[i]);
    const VInt negated = (sine < 0) | ((sine == 0) & (cosine < 0));
    const VInt sign = negated & VInt(-V{});
    sine = V(VInt(sine) ^ sign), cosine = V(VInt(cosine) ^ sign);
    VInt minus_bin{}, undecided{};
    if (plan.is_signed) {
      VInt minus_negated_bin = VInt{} - static_cast<IntOf<T>>(tile.edges.negated_bin);
      for (int64_t k = tile.edges.begin[0]; k < tile.edges.end[0]; ++k)
        minus_bin += sine * tile.cotangents[k] >= cosine;
      for (int64_t k = tile.edges.begin[1]; k < tile.edges.end[1]; ++k)
        minus_negated_bin += sine * tile.cotangents[k] >= cosine;
      minus_bin = negated ? minus_negated_bin : minus_bin;
    } else {
      const V minus_cosine = -cosine, size = absolute(cosine);
      // A rounded angle is off by less than kRounding. The product is off by that over the sine of an edge, which is at
      // least 2 / bins.
      const V margin = kRounding<T> * static_cast<T>(plan.bins) * (sine + size);
      for (int64_t k = 1; k <= pairs; ++k) {
        const V product = sine * tile.cotangents[k];
        minus_bin += (product >= cosine) + (product <= minus_cosine);
        if (SKIMAGE) undecided |= absolute(product - size) <= margin;
      }
      if (plan.bins % 2 == 0) minus_bin += (cosine <= 0) & (sine > 0);  // the edge at 90 degrees
      // Multiples of 45 degrees are exact in any arithmetic. Most pixels on edges are such.
      if (SKIMAGE) undecided |= (sine <= margin) | (size <= margin);
      if (SKIMAGE) undecided &= (sine != 0) & (size != 0) & (sine != size);
    }
    store_vector(undecided | -minus_bin, bin + x);  // -1 where undecided
    store_vector(magnitude, vote + x);
  }
  if (SKIMAGE)
    each_negative(bin, 0, tile.at.width, [&](int64_t x) {
      bin[x] = static_cast<IntOf<T>>(skimage_bin(sines[x], cosines[x], plan));
      if (bin[x] == plan.bins) bin[x] = 0, vote[x] *= 0;  // NaN where it is infinite
    });
}

// vote: the magnitude is shared by the two bins whose centres are nearest.
template <bool OPENCV, typename T>
inline void linear_votes(const BlockTile<T>& tile, int64_t slot) {
  using V = VectorFor<T>;
  using VInt = VectorFor<IntOf<T>>;
  const BlockPlan& plan = tile.plan;
  const IntOf<T> bins = static_cast<IntOf<T>>(plan.bins);
  const T *sines = plan.from_horizontal ? tile.gy : tile.gx, *cosines = plan.from_horizontal ? tile.gx : tile.gy;
  const T circle = static_cast<T>(plan.is_signed ? bins : 2 * bins);  // bins of a full circle
  const T scale = static_cast<T>((plan.is_signed ? bins : 2 * bins) / (OPENCV ? 360.0 : 2 * kPi));
  T* vote = tile.votes + slot * 2 * tile.vote_pitch;
  for (int64_t x = 0; x < tile.at.width; x += kLanes<T>) {
    const V sine = load_vector<V>(sines + x), cosine = load_vector<V>(cosines + x);
    V magnitude = sine * sine + cosine * cosine;
    for (int64_t i = 0; i < kLanes<T>; ++i) magnitude[i] = std::sqrt(magnitude[i]);
    const V s = absolute(sine), c = absolute(cosine);
    const V smaller = s < c ? s : c;
    V larger = s < c ? c : s;
    larger = larger > 0 ? larger : V{} + 1;  // a flat pixel must have an orientation too
    V octant;
    if constexpr (OPENCV) {
      octant = opencv_octant_degrees(smaller, larger);
    } else if constexpr (sizeof(T) == 8) {
      for (int64_t i = 0; i < kLanes<T>; ++i) octant[i] = std::atan2(smaller[i], larger[i]);
    } else {
      octant = octant_angle(smaller, larger, magnitude);
    }
    const V place = full_circle<V, T>(octant * scale, sine, cosine, circle) - T(0.5);
    VInt below = __builtin_convertvector(place, VInt);  // rounds towards zero
    below += place < 0;
    const V above_vote = magnitude * (place - __builtin_convertvector(below, V));
    below = below < 0 ? below + bins : below;
    below = below >= bins ? below - bins : below;
    below = (below < 0) | (below >= bins) ? VInt{} : below;  // where it was NaN
    store_vector(below, tile.bin + slot * tile.vote_pitch + x);
    store_vector(magnitude - above_vote, vote + x);
    store_vector(above_vote, vote + tile.vote_pitch + x);
  }
}

// load, gradient, vote: of the rows [begin, end), those that are not in the ring yet.
template <typename T>
inline void vote_rows(BlockTile<T>& tile, int64_t plane_offset, int64_t begin, int64_t end) {
  const BlockPlan& plan = tile.plan;
  for (int64_t y = std::max(tile.votes_end, begin); y < end; ++y) {
    for (int64_t i = std::max(tile.lines_end, y - 1); i < y + 2; ++i) load_lines(tile, plane_offset, i);
    tile.lines_end = y + 2;
    gradients(tile, y);
    const int64_t slot = y % tile.ring_rows;
    if (plan.votes == Votes::hard) {
      plan.arithmetic == Arithmetic::skimage ? hard_votes<true>(tile, slot) : hard_votes<false>(tile, slot);
    } else {
      plan.arithmetic == Arithmetic::opencv ? linear_votes<true>(tile, slot) : linear_votes<false>(tile, slot);
    }
  }
  tile.votes_end = std::max(tile.votes_end, end);
}
