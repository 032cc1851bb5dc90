// Reads the parameters of a HOG of blocks as maskfeat_kernels/blocks.py packs them.
#include "hog/plan.h"

#include <stdexcept>

namespace maskfeat {
namespace {

constexpr int64_t kMostCells = 1 << 16;            // of a block, along an axis
constexpr int64_t kMostPixels = int64_t{1} << 31;  // along an axis

void require(bool right) {
  if (!right) throw std::invalid_argument("these are not the parameters of a HOG of blocks");
}

// Takes items from the front of an array.
template <typename T>
struct Reader {
  const T* at;
  int64_t left;

  const T* take(int64_t count) {
    require(count >= 0 && count <= left);
    left -= count;
    return (at += count) - count;
  }
  T next() { return *take(1); }
  T below(T limit) {
    const T value = next();
    require(value >= 0 && value < limit);
    return value;
  }
};

CellAxis read_axis(Reader<int64_t>& numbers, Reader<double>& reals) {
  CellAxis axis;
  axis.pixels = numbers.next(), axis.stride = numbers.next();
  axis.per_block = numbers.next(), axis.block_step = numbers.next();
  axis.step = numbers.next(), axis.kinds = numbers.next(), axis.length = numbers.next();
  for (const int64_t size :
       {axis.pixels, axis.stride, axis.per_block, axis.block_step, axis.step, axis.kinds, axis.length})
    require(size >= 1 && size < kMostPixels);
  axis.starts = numbers.take(axis.kinds);
  axis.weights = reals.take(axis.kinds * axis.length);
  // The cells of a block must lie in its pixels, also far from the first block, or a kernel would read outside the image.
  require(axis.per_block <= kMostCells && axis.kinds <= kMostCells);
  require(axis.block_step * axis.step == axis.kinds * axis.stride);
  for (int64_t block = 0; block < axis.kinds; ++block)
    for (int64_t k = 0; k < axis.per_block; ++k) {
      const int64_t from = axis.start(block * axis.block_step + k) - block * axis.stride;
      require(from >= 0 && from + axis.length <= axis.pixels);
    }
  return axis;
}

}  // namespace

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) require(size >= 0 && !__builtin_mul_overflow(result, size, &result));
  return result;
}

HogBlocks read_hog_blocks(const int64_t* numbers, int64_t count, const double* reals, int64_t real_count,
                          const int64_t* region) {
  Reader<int64_t> ints{numbers, count};
  Reader<double> doubles{reals, real_count};
  HogBlocks hog;
  hog.bins = ints.next();
  require(hog.bins >= 1 && hog.bins < (int64_t{1} << 31));
  hog.sqrt = ints.below(2);
  hog.gradient = static_cast<Gradient>(ints.below(2));
  hog.strongest = ints.below(2);
  hog.is_signed = ints.below(2);
  hog.from_horizontal = ints.below(2);
  hog.votes = static_cast<Votes>(ints.below(2));
  hog.norm = static_cast<Norm>(ints.below(6));
  hog.arithmetic = static_cast<Arithmetic>(ints.below(3));
  hog.layout = static_cast<Layout>(ints.below(3));
  hog.eps = doubles.next(), hog.eps_again = doubles.next(), hog.clip = doubles.next();
  hog.y = read_axis(ints, doubles);
  hog.x = read_axis(ints, doubles);
  require(ints.left == 0 && doubles.left == 0);
  hog.region = {region[0], region[1], region[2], region[3], region[4]};
  require(hog.region.height >= 0 && hog.region.width >= 0);
  for (const int64_t number : {hog.region.top, hog.region.left, hog.region.height, hog.region.width})
    require(number > -kMostPixels && number < kMostPixels);
  product({hog.block_rows(), hog.block_columns(), hog.y.per_block, hog.x.per_block, hog.bins});
  return hog;
}

BlockStrides HogBlocks::strides() const {
  const int64_t rows = block_rows(), columns = block_columns(), down = y.per_block, across = x.per_block;
  switch (layout) {
    case Layout::planes: return {columns, 1, across * bins * rows * columns, bins * rows * columns, rows * columns};
    case Layout::rows: return {columns * entries(), entries(), across * bins, bins, 1};
    case Layout::columns: return {entries(), rows * entries(), bins, down * bins, 1};
  }
  return {};
}

}  // namespace maskfeat
