// Histograms of blocks on the CPU, in one pass over the image. A thread does whole rows of blocks. A tile of whole
// blocks, about 256 columns wide, walks down the rows. It keeps no more rows of votes and cells than the next block
// needs.
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
// keeps its bins in registers. The sums are then transposed, so that sums across the columns do all bins of a cell at
// once.
//
// blocks.cpp includes this file once per instruction set, after common/simd/vector.h, in a namespace that defines
// kVectorBytes. There is no include guard.

#include "hog/cpu/votes.h"

// It needs the vectors of votes.h.
#include "hog/cpu/normalise.h"

// sum + a where `is_a` holds, sum + b where `is_b` holds, else sum. Never do both hold. Vectors of 64 bytes have masked
// additions. The others select before they add, which gives the same bits.
template <typename V, typename Mask>
inline V add_one_of(V sum, Mask is_a, V a, Mask is_b, V b) {
  if constexpr (sizeof(V) == 64) return add_where(add_where(sum, is_a, a), is_b, b);
  return sum + (is_b ? b : (is_a ? a : V{}));
}

// cell: the sums of each column over the rows [begin, end), for the bins first to first + N - 1.
template <int N, bool LINEAR, typename T>
inline void sum_down(const BlockTile<T>& tile, int64_t first, int64_t begin, int64_t end, const T* weights,
                     bool is_start) {
  using V = VectorFor<T>;
  using VInt = VectorFor<IntOf<T>>;
  const int64_t stride = tile.stride, pitch = tile.vote_pitch;
  const VInt first_bin = VInt{} + static_cast<IntOf<T>>(first);
  const VInt bin_before = VInt{} + static_cast<IntOf<T>>(first > 0 ? first - 1 : tile.plan.bins - 1);
  for (int64_t x = 0; x < tile.at.width; x += kLanes<T>) {
    V sums[N]{};
    int64_t slot = begin % tile.ring_rows;
    for (int64_t y = begin; y < end; ++y) {
      const VInt bin = load_vector<VInt>(tile.bin + slot * pitch + x);
      const T* votes = tile.votes + slot * 2 * pitch + x;
      const V vote = load_vector<V>(votes) * weights[y - begin];
      if (LINEAR) {
        const V above = load_vector<V>(votes + pitch) * weights[y - begin];
        sums[0] = add_where(sums[0], bin == bin_before, above);
        sums[0] = add_where(sums[0], bin == first_bin, vote);
        for (int k = 1; k < N; ++k)
          sums[k] = add_one_of(sums[k], bin == first_bin + k, vote, bin == first_bin + (k - 1), above);
      } else {
        for (int k = 0; k < N; ++k) sums[k] = add_where(sums[k], bin == first_bin + k, vote);
      }
      if (++slot == tile.ring_rows) slot = 0;
    }
    T* to = tile.columns + first * stride + x;
    for (int k = 0; k < N; ++k, to += stride) store_vector(is_start ? sums[k] : load_vector<V>(to) + sums[k], to);
  }
}

// cell: calls sum_down() with the number of bins as a constant.
template <bool LINEAR, int N = kBinsAtOnce, typename T>
inline void sum_bins_down(const BlockTile<T>& tile, int64_t bins_at_once, int64_t first, int64_t begin, int64_t end,
                          const T* weights, bool is_start) {
  if constexpr (N > 0) {
    if (bins_at_once == N) return sum_down<N, LINEAR>(tile, first, begin, end, weights, is_start);
    sum_bins_down<LINEAR, N - 1>(tile, bins_at_once, first, begin, end, weights, is_start);
  }
}

// One step of a transpose, followed by the smaller ones. The matrix consists of squares of HALF rows and lanes. The two
// squares beside the diagonal change places.
template <int HALF, typename V, int... LANE>
inline void swap_squares(V* rows, std::integer_sequence<int, LANE...> lanes) {
  constexpr int kAll = sizeof...(LANE);
  for (int i = 0; i < kAll; ++i)
    if (!(i & HALF)) {
      const V a = rows[i], b = rows[i + HALF];
      rows[i] = SHUFFLE(a, b, (LANE & HALF ? kAll + LANE - HALF : LANE)...);
      rows[i + HALF] = SHUFFLE(a, b, (LANE & HALF ? kAll + LANE : LANE + HALF)...);
    }
  if constexpr (HALF > 1) swap_squares<HALF / 2>(rows, lanes);
}

// cell: from [bins, columns] to [columns, bins].
template <typename T>
inline void transpose(const BlockTile<T>& tile) {
  using V = VectorFor<T>;
  constexpr int64_t kL = kLanes<T>;
  for (int64_t first = 0; first < tile.plan.bins; first += kL)
    for (int64_t x = 0; x < tile.at.width; x += kL) {
      V rows[kL];
      for (int64_t k = 0; k < kL; ++k)
        rows[k] = load_vector<V>(tile.columns + std::min(first + k, tile.plan.bins - 1) * tile.stride + x);
      swap_squares<kL / 2>(rows, std::make_integer_sequence<int, kL>());
      for (int64_t i = 0; i < kL; ++i) store_vector(rows[i], tile.transposed + (x + i) * tile.bin_pitch + first);
    }
}

// cell: the sums across the columns of each cell. A vector of bins may reach into the next cell, which is written
// later.
template <typename T>
inline void sum_across(const BlockTile<T>& tile, T* __restrict cells) {
  using V = VectorFor<T>;
  const int64_t count = tile.cell_left.size(), length = tile.plan.x.length, pitch = tile.bin_pitch;
  for (int64_t c = 0; c < count; ++c) {
    const T* weights = tile.across + tile.cell_phase[c] * length;
    for (int64_t first = 0; first < tile.plan.bins; first += kLanes<T>) {
      const T* from = tile.transposed + tile.cell_left[c] * pitch + first;
      V sum{};
      for (int64_t i = 0; i < length; ++i) sum += load_vector<V>(from + i * pitch) * weights[i];
      store_vector(sum, cells + c * tile.plan.bins + first);
    }
  }
}

template <typename T>
inline void cell_row(BlockTile<T>& tile, int64_t plane_offset, int64_t cell) {
  const BlockPlan& plan = tile.plan;
  const int64_t top = plan.y.start(cell), bins = plan.bins;
  const T* weights = tile.down + cell % plan.y.period * plan.y.length;
  for (int64_t done = 0; done < plan.y.length; done += kRowsAtOnce) {
    const int64_t begin = top + done, end = top + std::min(done + kRowsAtOnce, plan.y.length);
    vote_rows(tile, plane_offset, begin, end);
    for (int64_t first = 0, left = bins; left > 0;) {
      const int64_t count = first_share(left, kBinsAtOnce);
      plan.votes == Votes::linear ? sum_bins_down<true>(tile, count, first, begin, end, weights + done, done == 0)
                                  : sum_bins_down<false>(tile, count, first, begin, end, weights + done, done == 0);
      first += count, left -= count;
    }
  }
  transpose(tile);
  sum_across(tile, tile.cells + cell % plan.y.per_block * tile.cell_pitch);
}

// Copies pairs of whole vectors. The last pair may reach past `count`. The next numbers to be appended overwrite the
// rest.
template <typename T>
inline T* append(const T* from, int64_t count, T* to) {
  using V = VectorFor<T>;
  for (int64_t i = 0; i < count; i += 2 * kLanes<T>) {
    const V a = load_vector<V>(from + i), b = load_vector<V>(from + i + kLanes<T>);
    store_vector(a, to + i), store_vector(b, to + i + kLanes<T>);
  }
  return to + count;
}

// normalise: from the ring of cells, the blocks of row `row` of the tile go to the plane `out` of the result.
template <typename T>
inline void write_blocks(const BlockTile<T>& tile, int64_t row, T* out) {
  const BlockPlan& plan = tile.plan;
  const int64_t bins = plan.bins, down = plan.y.per_block, across = plan.x.per_block, entries = plan.entries();
  const int64_t padded = round_up(entries, kPartialSums);
  const BlockStrides strides = plan.strides();
  const auto cells_of = [&](int64_t block, int64_t k) {
    return tile.cells + (row * plan.y.block_step + k) % down * tile.cell_pitch + block * plan.x.block_step * bins;
  };
  // All blocks are gathered before the first is read. A load that overlaps two recent stores would have to wait for them.
  for (int64_t b = 0; b < tile.at.count; ++b) {
    T* const v = tile.blocks + b * padded;
    T* end = v;
    if (plan.layout == Layout::columns) {
      for (int64_t i = 0; i < across; ++i)
        for (int64_t k = 0; k < down; ++k) end = append(cells_of(b, k) + i * bins, bins, end);
    } else {
      for (int64_t k = 0; k < down; ++k) end = append(cells_of(b, k), across * bins, end);
    }
    for (int64_t i = 0; i < kPartialSums; i += kLanes<T>) store_vector(VectorFor<T>{}, end + i);
  }
  for (int64_t b = 0; b < tile.at.count; ++b) {
    T* __restrict v = tile.blocks + b * padded;
    const T factor = normalise(plan, v, padded);
    T* __restrict to = out + row * strides.row + (tile.at.first + b) * strides.column;
    if (plan.norm == Norm::l1_sqrt)
      for (int64_t i = 0; i < entries; ++i) v[i] = std::sqrt(v[i] * factor);
    const T last = plan.norm == Norm::l1_sqrt ? T(1) : factor;
    if (plan.layout != Layout::planes) {
      for (int64_t i = 0; i < entries; ++i) to[i] = v[i] * last;
    } else {
      for (int64_t i = 0; i < entries; ++i) to[i * strides.bin] = v[i] * last;  // all axes of a block are one here
    }
  }
}

// All stages, for the rows of blocks [first, last) of a tile, into the plane `out` of the result.
template <typename T>
inline void tile_rows(BlockTile<T>& tile, int64_t plane_offset, int64_t first, int64_t last, T* out) {
  const CellAxis& y = tile.plan.y;
  int64_t cells_end = 0;
  for (int64_t row = first; row < last; ++row) {
    const int64_t cell = row * y.block_step;
    for (int64_t c = std::max(cell, cells_end); c < cell + y.per_block; ++c) cell_row(tile, plane_offset, c);
    cells_end = cell + y.per_block;
    write_blocks(tile, row, out);
  }
}

// How many blocks across a tile has, of `across` in a row.
inline int64_t blocks_of_tile(const BlockPlan& plan, int64_t across) {
  return first_share(across, std::max<int64_t>(1, (kTileColumns - plan.x.pixels) / plan.x.stride + 1));
}

template <typename T>
void compute_block_rows(const ImageView& image, const Channels& channels, const BlockPlan& plan, T* out, int64_t begin,
                        int64_t end) {
  const int64_t rows = plan.block_rows(), across = plan.block_columns(), stride = plan.x.stride, pixels = plan.x.pixels;
  const int64_t count = blocks_of_tile(plan, across);
  BlockTile<T> tile(image, channels, plan, count);
  for (int64_t item = begin; item < end;) {
    const int64_t plane = item / rows, first = item % rows, last = std::min(rows, first + end - item);
    for (int64_t block = 0; block < across; block += count) {
      const int64_t blocks = std::min(count, across - block);
      tile.begin({block, blocks, block * stride, (blocks - 1) * stride + pixels});
      tile_rows(tile, image.plane_offset(plane), first, last, out + plane * plan.size());
    }
    item += last - first;
  }
}

void block_rows(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, int64_t begin,
                int64_t end) {
  image.dtype == Dtype::float64 ? compute_block_rows(image, channels, plan, static_cast<double*>(out), begin, end)
                                : compute_block_rows(image, channels, plan, static_cast<float*>(out), begin, end);
}

#include "hog/cpu/backward.h"
#include "hog/cpu/points_kernel.h"
