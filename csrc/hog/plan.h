// HOG of blocks of cells in any dialect: its parameters, and the maths of one pixel and one block. Dialects differ in a few
// choices here, and for all the rest (box or bilinear cells, a Gaussian, the mean, cells that blocks share) in the weights of
// pixels in cells that maskfeat_kernels/blocks.py computes. Knows neither Python nor torch.
#pragma once

#include <cmath>
#include <vector>

#include "common/image_view.h"

namespace maskfeat {

struct HogParameters {
  int64_t bins;
  int64_t cell_h, cell_w;
  int64_t gaussian_window;  // side in pixels, 0 for none
};

// Patches of images [B, T, C, H, W] (three leading axes, not merged), chosen by ids [B, K] on the grid of whole patches,
// row by row and frame by frame.
struct PatchView {
  const int64_t* ids;
  int64_t count;  // K
  int64_t id_batch_stride, id_stride;
  int64_t side;                    // of a patch, in pixels
  int64_t frames, grid_h, grid_w;  // T, patches down, patches across

  INLINE int64_t id(int64_t batch, int64_t k) const { return ids[batch * id_batch_stride + k * id_stride]; }
  INLINE bool holds(int64_t id) const { return id >= 0 && id < frames * grid_h * grid_w; }
  INLINE int64_t frame(int64_t id) const { return id / (grid_h * grid_w); }
  INLINE int64_t top(int64_t id) const { return id / grid_w % grid_h * side; }
  INLINE int64_t left(int64_t id) const { return id % grid_w * side; }
};

enum class Gradient : int64_t { sobel, central };
enum class Votes : int64_t { hard, linear };
enum class Arithmetic : int64_t { exact, opencv, skimage };
enum class Norm : int64_t { unit, none, l1, l1_sqrt, l2, l2_hys };
enum class Layout : int64_t { planes, rows, columns };

// The cells along an axis. Cell a weights the pixels start(a) .. start(a) + length - 1 with weights[a % kinds]; cell k of
// block b is a = b * block_step + k.
struct CellAxis {
  int64_t pixels, stride;         // of a block, and from a block to the next
  int64_t per_block, block_step;  // cells
  int64_t step, kinds, length;
  const int64_t* starts;  // [kinds]
  const double* weights;  // [kinds, length]

  INLINE int64_t blocks(int64_t size) const { return size < pixels ? 0 : (size - pixels) / stride + 1; }
  INLINE int64_t cells(int64_t size) const { return (blocks(size) - 1) * block_step + per_block; }
  INLINE int64_t start(int64_t cell) const { return cell / kinds * step + starts[cell % kinds]; }
};

// A rectangle in the plane that the mirrored images of an image tile; see Region in blocks.py.
struct Region {
  int64_t top, left, height, width, tie_column;
};

// Strides of the result, counted in elements.
struct BlockStrides {
  int64_t row, column, cell_row, cell_column, bin;
};

// The channels of a plane, of which each pixel takes the strongest: one, unless channels are "strongest".
struct Channels {
  static constexpr int64_t kMost = 1 << 20;
  int64_t count, stride;
};

struct HogBlocks {
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
  double eps, eps_again, clip;
  double (*arc_tangent)(double, double) = std::atan2;  // of skimage; another rounds otherwise
  CellAxis y, x;
  Region region;

  int64_t block_rows() const { return y.blocks(region.height); }
  int64_t block_columns() const { return x.blocks(region.width); }
  int64_t entries() const { return y.per_block * x.per_block * bins; }  // of a block
  int64_t size() const { return block_rows() * block_columns() * entries(); }
  BlockStrides strides() const;
};

// Reads what blocks.py packs; the arrays must outlive the result, whose tables point into them. Throws
// std::invalid_argument where the numbers are not those of a HOG.
HogBlocks read_hog_blocks(const int64_t* numbers, int64_t count, const double* reals, int64_t real_count,
                          const int64_t* region);

// Throws std::invalid_argument for negative sizes and for more than 2^63 elements.
int64_t product(const std::vector<int64_t>& sizes);

}  // namespace maskfeat
