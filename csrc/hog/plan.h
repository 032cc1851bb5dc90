// The plan of a HOG: its parameters as numbers, which the kernels of every device read. A CellPlan describes MaskFeat's
// HOG, where each cell is normalised alone. A BlockPlan describes any dialect. maskfeat_kernels computes both from a
// HogSpec.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/image_view.h"

namespace maskfeat {

// Unsigned orientations, hard votes, Sobel gradients, and cells that are divided by their length.
struct CellPlan {
  int64_t bins;
  int64_t cell_h, cell_w;
  int64_t gaussian_window;  // side in pixels, 0 for none
  bool sums_only = false;   // leave out the division
};

// One of several cell sizes, from fine to coarse. A cell consists of down * across cells of the size before.
struct Scale {
  void* out;  // [planes, bins, rows, columns]
  int64_t rows, columns, down, across;

  INLINE int64_t size() const { return rows * columns; }
};

// Rows of the finest cells that have one row of the coarsest, or all rows where there is none.
inline int64_t band_rows(const Scale* scales, int64_t count) {
  int64_t rows = 1;
  for (int64_t i = 1; i < count; ++i) rows *= scales[i].down;
  return std::min(rows, scales[0].rows);
}

// Patches of images [B, T, C, H, W], whose three leading axes are not merged. Ids [B, K] choose them on the grid of
// whole patches, which is numbered row by row and frame by frame.
struct PatchView {
  const int64_t* ids;
  int64_t count;  // K
  int64_t id_batch_stride, id_stride;
  int64_t side;                    // pixels along a side of a patch
  int64_t frames, grid_h, grid_w;  // T, patches down, patches across

  INLINE int64_t id(int64_t batch, int64_t k) const { return ids[batch * id_batch_stride + k * id_stride]; }
  INLINE bool holds(int64_t id) const { return id >= 0 && id < frames * grid_h * grid_w; }
  INLINE int64_t frame(int64_t id) const { return id / (grid_h * grid_w); }
  INLINE int64_t top(int64_t id) const { return id / grid_w % grid_h * side; }
  INLINE int64_t left(int64_t id) const { return id % grid_w * side; }
};

// The words of HogSpec, in the order of its CHOICES.
enum class Gradient : int64_t { sobel, central };
enum class Votes : int64_t { hard, linear };
enum class Arithmetic : int64_t { exact, opencv, skimage };
enum class Norm : int64_t { unit, none, l1, l1_sqrt, l2, l2_hys };
enum class Layout : int64_t { planes, rows, columns };

// The cells along an axis, as tables. Cell a weights the pixels start(a) .. start(a) + length - 1 with
// weights[a % period]. Cell k of block b is cell a = b * block_step + k. Box and bilinear cells, a Gaussian, the mean,
// and cells that blocks share are all expressed by these weights.
struct CellAxis {
  int64_t pixels, stride;         // pixels of a block, and from a block to the next
  int64_t per_block, block_step;  // cells of a block, and from a block to the next
  int64_t step;                   // pixels from a cell to the one `period` cells later
  int64_t period;                 // cells after which the weights repeat
  int64_t length;                 // pixels of a cell
  const int64_t* starts;          // [period]
  const double* weights;          // [period, length]

  INLINE int64_t blocks(int64_t size) const { return size < pixels ? 0 : (size - pixels) / stride + 1; }
  INLINE int64_t cells(int64_t size) const { return (blocks(size) - 1) * block_step + per_block; }
  INLINE int64_t start(int64_t cell) const { return cell / period * step + starts[cell % period]; }
};

// The rectangle whose blocks are computed. It lies in the plane that the mirror images of the image tile without end.
struct Region {
  int64_t top, left, height, width;
  int64_t tie_column;  // from here on the last of equally strong channels is taken, before it the first
};

// Strides of the result, in elements.
struct BlockStrides {
  int64_t row, column, cell_row, cell_column, bin;
};

// The channels of a plane. Each pixel takes the one with the strongest gradient. There is one channel, unless the
// spec's channels are "strongest".
struct Channels {
  static constexpr int64_t kMost = 1 << 20;
  int64_t count, stride;
};

struct BlockPlan {
  int64_t bins;
  bool sqrt;
  Gradient gradient;
  bool strongest;
  bool is_signed;
  bool from_horizontal;
  Votes votes;
  Norm norm;
  Arithmetic arithmetic;
  Layout layout;
  double eps, eps_again, clip;                         // eps_again is that of the second normalisation of "l2-hys"
  double (*arc_tangent)(double, double) = std::atan2;  // decides scikit-image's bins; NumPy's rounds differently
  CellAxis y, x;
  Region region;

  int64_t block_rows() const { return y.blocks(region.height); }
  int64_t block_columns() const { return x.blocks(region.width); }
  int64_t entries() const { return y.per_block * x.per_block * bins; }  // numbers of a block
  int64_t size() const { return block_rows() * block_columns() * entries(); }
  BlockStrides strides() const;
};

// Reads what plan.py packs. The tables of the result point into the arrays, which must outlive it. Throws
// std::invalid_argument where the numbers are not those of a plan.
BlockPlan read_block_plan(const int64_t* numbers, int64_t count, const double* reals, int64_t real_count,
                          const int64_t* region);

// Throws std::invalid_argument for negative sizes and for more than 2^63 elements.
int64_t product(const std::vector<int64_t>& sizes);

}  // namespace maskfeat
