// HOG of blocks on the CPU, one pass over the image: a tile of whole blocks, about 256 columns wide, walks down the block
// rows, and keeps no more than the rows that the next block needs.
//
//      <------ tile: whole blocks, about 256 columns ------>
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h    load:      three lines of pixels and their halo h
//    h|p p p p p p p p p p p p p p p p p p p p p p p p p p|h    gradient:  gx, gy of a row, of its strongest channel
//    h h h h h h h h h h h h h h h h h h h h h h h h h h h h
//     |v v v v v v v v v v v v v v v v v v v v v v v v v v|     vote:      bin and one or two votes of each pixel
//     |c c c c c c c c|c c c c c c c c|c c c c c c c c|         cell:      down the rows, then across the columns
//     |b b b b b b b b b b b b b b b b|                         normalise: cells of a block, divided by their norm
//              |b b b b b b b b b b b b b b b b|
//
// Rows of votes and rows of cells that several blocks hold stay in rings. For sums down the rows, a vector of columns
// keeps its bins in registers; they are then transposed, so that sums across the columns do all bins of a cell at once.
//
// Included by hog/cpu/blocks.cpp once per instruction set, after common/simd/vector.h, in a namespace that defines
// kVectorBytes: no include guard.

#include "hog/cpu/votes.h"

// cell: the sums of the rows [begin, end) of each column, for the bins first .. first + N - 1.
template <int N, bool LINEAR, typename T>
inline void sum_down(const Tile<T>& tile, int64_t first, int64_t begin, int64_t end, const T* weights, bool is_start) {
  using V = VectorFor<T>;
  using VInt = VectorFor<IntOf<T>>;
  const int64_t stride = tile.stride;
  const VInt first_bin = VInt{} + static_cast<IntOf<T>>(first);
  const VInt bin_before = VInt{} + static_cast<IntOf<T>>(first > 0 ? first - 1 : tile.hog.bins - 1);
  for (int64_t x = 0; x < tile.at.width; x += kLanes<T>) {
    V sums[N]{};
    int64_t slot = begin % tile.kept;
    for (int64_t y = begin; y < end; ++y) {
      const VInt bin = load_vector<VInt>(tile.bin + slot * stride + x);
      const T* votes = tile.votes + slot * 2 * stride + x;
      const V vote = load_vector<V>(votes) * weights[y - begin];
      if (LINEAR) {
        const V above = load_vector<V>(votes + stride) * weights[y - begin];
        sums[0] = add_where(sums[0], bin == bin_before, above);
        for (int k = 0; k < N; ++k) {
          const VInt here = bin == first_bin + k;
          sums[k] = add_where(sums[k], here, vote);
          if (k + 1 < N) sums[k + 1] = add_where(sums[k + 1], here, above);
        }
      } else {
        for (int k = 0; k < N; ++k) sums[k] = add_where(sums[k], bin == first_bin + k, vote);
      }
      if (++slot == tile.kept) slot = 0;
    }
    T* to = tile.columns + first * stride + x;
    for (int k = 0; k < N; ++k, to += stride) store_vector(is_start ? sums[k] : load_vector<V>(to) + sums[k], to);
  }
}

// cell: all bins, in as few walks of about as many bins each as registers allow.
template <bool LINEAR, int N = kBinsAtOnce, typename T>
inline void sum_bins_down(const Tile<T>& tile, int64_t bins_at_once, int64_t first, int64_t begin, int64_t end,
                          const T* weights, bool is_start) {
  if constexpr (N > 0) {
    if (bins_at_once == N) return sum_down<N, LINEAR>(tile, first, begin, end, weights, is_start);
    sum_bins_down<LINEAR, N - 1>(tile, bins_at_once, first, begin, end, weights, is_start);
  }
}

// One step of a transpose, and the smaller ones: of blocks of HALF rows and lanes, those off the diagonal change places.
template <int HALF, typename V, int... LANE>
inline void swap_blocks(V* rows, std::integer_sequence<int, LANE...> lanes) {
  constexpr int kAll = sizeof...(LANE);
  for (int i = 0; i < kAll; ++i)
    if (!(i & HALF)) {
      const V a = rows[i], b = rows[i + HALF];
      rows[i] = SHUFFLE(a, b, (LANE & HALF ? kAll + LANE - HALF : LANE)...);
      rows[i + HALF] = SHUFFLE(a, b, (LANE & HALF ? kAll + LANE : LANE + HALF)...);
    }
  if constexpr (HALF > 1) swap_blocks<HALF / 2>(rows, lanes);
}

// cell: from [bins, columns] to [columns, bins].
template <typename T>
inline void transpose(const Tile<T>& tile) {
  using V = VectorFor<T>;
  constexpr int64_t kL = kLanes<T>;
  for (int64_t first = 0; first < tile.hog.bins; first += kL)
    for (int64_t x = 0; x < tile.at.width; x += kL) {
      V rows[kL];
      for (int64_t k = 0; k < kL; ++k)
        rows[k] = load_vector<V>(tile.columns + std::min(first + k, tile.hog.bins - 1) * tile.stride + x);
      swap_blocks<kL / 2>(rows, std::make_integer_sequence<int, kL>());
      for (int64_t i = 0; i < kL; ++i) store_vector(rows[i], tile.transposed + (x + i) * tile.bin_pitch + first);
    }
}

// cell: the sums across the columns of each cell. Vectors of bins reach into the next cell, which is written after.
template <typename T>
inline void sum_across(const Tile<T>& tile, T* __restrict cells) {
  using V = VectorFor<T>;
  const int64_t count = tile.cell_left.size(), length = tile.hog.x.length, pitch = tile.bin_pitch;
  for (int64_t c = 0; c < count; ++c) {
    const T* weights = tile.across + tile.cell_kind[c] * length;
    for (int64_t first = 0; first < tile.hog.bins; first += kLanes<T>) {
      const T* from = tile.transposed + tile.cell_left[c] * pitch + first;
      V sum{};
      for (int64_t i = 0; i < length; ++i) sum += load_vector<V>(from + i * pitch) * weights[i];
      store_vector(sum, cells + c * tile.hog.bins + first);
    }
  }
}

template <typename T>
inline void cell_row(Tile<T>& tile, int64_t plane_offset, int64_t cell) {
  const HogBlocks& hog = tile.hog;
  const int64_t top = hog.y.start(cell), bins = hog.bins;
  const T* weights = tile.down + cell % hog.y.kinds * hog.y.length;
  for (int64_t done = 0; done < hog.y.length; done += kRowsAtOnce) {
    const int64_t begin = top + done, end = top + std::min(done + kRowsAtOnce, hog.y.length);
    vote_rows(tile, plane_offset, begin, end);
    for (int64_t first = 0, left = bins; left > 0;) {
      const int64_t count = first_share(left, kBinsAtOnce);
      hog.votes == Votes::linear ? sum_bins_down<true>(tile, count, first, begin, end, weights + done, done == 0)
                                 : sum_bins_down<false>(tile, count, first, begin, end, weights + done, done == 0);
      first += count, left -= count;
    }
  }
  transpose(tile);
  sum_across(tile, tile.cells + cell % hog.y.per_block * tile.cell_pitch);
}

template <int HALF, typename V, int... LANE>
inline V sum_of_lanes(V v, std::integer_sequence<int, LANE...> lanes) {
  v += SHUFFLE(v, v, (LANE ^ HALF)...);
  if constexpr (HALF > 1) v = sum_of_lanes<HALF / 2>(v, lanes);
  return v;
}

// normalise: the sum of f(v) in kPartialSums columns, which are then added as a tree: one order at every vector width.
template <typename T, typename F>
inline T sum_of(T* v, int64_t padded, const F& f) {
  using V = VectorFor<T>;
  constexpr int64_t kL = kLanes<T>, kParts = kPartialSums / kL;
  V sums[kParts]{};
  for (int64_t i = 0; i < padded; i += kPartialSums)
    for (int64_t part = 0; part < kParts; ++part) {
      V entries = load_vector<V>(v + i + part * kL);
      sums[part] += f(entries);
      store_vector(entries, v + i + part * kL);
    }
  for (int64_t half = kParts / 2; half > 0; half /= 2)
    for (int64_t part = 0; part < half; ++part) sums[part] += sums[part + half];
  return sum_of_lanes<kL / 2>(sums[0], std::make_integer_sequence<int, kL>())[0];
}

// NaN where an entry is not finite, else 0. Apart, so that the dialects that have a norm do not wait for it.
template <typename T>
[[gnu::noinline]] T zero_or_nan(T* v, int64_t padded) {
  return sum_of(v, padded, [](auto& entries) { return entries * 0; });
}

// normalise: makes v, followed by zeros, the block before its last product, and returns the factor of that: NaN where the norm
// of the block is not finite.
template <typename T>
inline T normalise(const HogBlocks& hog, T* v, int64_t padded) {
  const T eps = static_cast<T>(hog.eps), eps_again = static_cast<T>(hog.eps_again), clip = static_cast<T>(hog.clip);
  const auto squared = [](auto& entries) { return entries * entries; };
  if (hog.norm == Norm::none) return T(1) + zero_or_nan(v, padded);
  if (hog.norm == Norm::l1 || hog.norm == Norm::l1_sqrt)
    return T(1) / finite_or_nan(sum_of(v, padded, [](auto& entries) { return entries; }) + eps);
  const T square = sum_of(v, padded, squared);
  if (!std::isfinite(square)) return std::numeric_limits<T>::quiet_NaN();  // foreseen: the next block need not wait
  if (hog.norm == Norm::unit) return T(1) / (std::sqrt(square) < eps ? eps : std::sqrt(square));
  const bool is_opencv = hog.arithmetic == Arithmetic::opencv;
  const T factor = T(1) / (is_opencv ? std::sqrt(square) + eps : std::sqrt(square + eps * eps));
  if (hog.norm == Norm::l2) return factor;
  const VectorFor<T> limit = VectorFor<T>{} + clip;
  const T again = sum_of(v, padded, [factor, limit](auto& entries) {
    entries *= factor;
    entries = entries > limit ? limit : entries;
    return entries * entries;
  });
  return T(1) / (is_opencv ? std::sqrt(again) + eps_again : std::sqrt(again + eps_again * eps_again));
}

// In pairs of whole vectors, of which the last reaches further: the next to be appended goes there.
template <typename T>
inline T* append(const T* from, int64_t count, T* to) {
  using V = VectorFor<T>;
  for (int64_t i = 0; i < count; i += 2 * kLanes<T>) {
    const V a = load_vector<V>(from + i), b = load_vector<V>(from + i + kLanes<T>);
    store_vector(a, to + i), store_vector(b, to + i + kLanes<T>);
  }
  return to + count;
}

// normalise: the blocks of row `row` of the tile, from the ring of cells into the plane `out` of the result.
template <typename T>
inline void write_blocks(const Tile<T>& tile, int64_t row, T* out) {
  const HogBlocks& hog = tile.hog;
  const int64_t bins = hog.bins, down = hog.y.per_block, across = hog.x.per_block, entries = hog.entries();
  const int64_t padded = round_up(entries, kPartialSums);
  const BlockStrides strides = hog.strides();
  const auto cells_of = [&](int64_t block, int64_t k) {
    return tile.cells + (row * hog.y.block_step + k) % down * tile.cell_pitch + block * hog.x.block_step * bins;
  };
  for (int64_t b = 0; b < tile.at.count;
       ++b) {  // in a pass of its own: the loads below do not line up with these stores
    T* const v = tile.blocks + b * padded;
    T* end = v;
    if (hog.layout == Layout::columns) {
      for (int64_t i = 0; i < across; ++i)
        for (int64_t k = 0; k < down; ++k) end = append(cells_of(b, k) + i * bins, bins, end);
    } else {
      for (int64_t k = 0; k < down; ++k) end = append(cells_of(b, k), across * bins, end);
    }
    for (int64_t i = 0; i < kPartialSums; i += kLanes<T>) store_vector(VectorFor<T>{}, end + i);
  }
  for (int64_t b = 0; b < tile.at.count; ++b) {
    T* __restrict v = tile.blocks + b * padded;
    const T factor = normalise(hog, v, padded);
    T* __restrict to = out + row * strides.row + (tile.at.first + b) * strides.column;
    if (hog.norm == Norm::l1_sqrt)
      for (int64_t i = 0; i < entries; ++i) v[i] = std::sqrt(v[i] * factor);
    const T last = hog.norm == Norm::l1_sqrt ? T(1) : factor;
    if (hog.layout != Layout::planes) {
      for (int64_t i = 0; i < entries; ++i) to[i] = v[i] * last;
    } else {
      for (int64_t i = 0; i < entries; ++i) to[i * strides.bin] = v[i] * last;  // all its axes are one
    }
  }
}

// All stages, for the block rows [first, last) of a tile, into the plane `out` of the result.
template <typename T>
inline void tile_rows(Tile<T>& tile, int64_t plane_offset, int64_t first, int64_t last, T* out) {
  const CellAxis& y = tile.hog.y;
  int64_t cells_end = 0;
  for (int64_t row = first; row < last; ++row) {
    const int64_t cell = row * y.block_step;
    for (int64_t c = std::max(cell, cells_end); c < cell + y.per_block; ++c) cell_row(tile, plane_offset, c);
    cells_end = cell + y.per_block;
    write_blocks(tile, row, out);
  }
}

template <typename T>
void hog_block_rows(const ImageView& image, const Channels& channels, const HogBlocks& hog, T* out, int64_t begin,
                    int64_t end) {
  const int64_t rows = hog.block_rows(), across = hog.block_columns(), stride = hog.x.stride, pixels = hog.x.pixels;
  const int64_t fit = std::max<int64_t>(1, (kTileColumns - pixels) / stride + 1), tiles = (across + fit - 1) / fit;
  const int64_t count = (across + tiles - 1) / tiles;
  Tile<T> tile(image, channels, hog, count);
  for (int64_t item = begin; item < end;) {
    const int64_t plane = item / rows, first = item % rows, last = std::min(rows, first + end - item);
    for (int64_t block = 0; block < across; block += count) {
      const int64_t blocks = std::min(count, across - block);
      tile.begin({block, blocks, block * stride, (blocks - 1) * stride + pixels});
      tile_rows(tile, image.plane_offset(plane), first, last, out + plane * hog.size());
    }
    item += last - first;
  }
}

void hog_blocks(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, int64_t begin,
                int64_t end) {
  image.dtype == Dtype::float64 ? hog_block_rows(image, channels, hog, static_cast<double*>(out), begin, end)
                                : hog_block_rows(image, channels, hog, static_cast<float*>(out), begin, end);
}

#include "hog/cpu/backward.h"
