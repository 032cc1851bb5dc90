// Reads a plan as maskfeat_kernels/hog/plan.py packs it, and checks that no kernel can leave its memory because of it.
#include "hog/plan.h"

#include <stdexcept>

namespace maskfeat {
namespace {

constexpr int64_t kMostCells = 1 << 16;            // the most cells of a block along an axis
constexpr int64_t kMostPixels = int64_t{1} << 31;  // the most pixels along an axis

void require(bool right) {
  if (!right) throw std::invalid_argument("these are not the parameters of a HOG of blocks");
}

// Takes numbers from the front of an array.
template <typename T>
struct Reader {
  const T* at;
  int64_t left;

  const T* take(int64_t count) {
    require(count >= 0 && count <= left);
    const T* const taken = at;
    at += count;
    left -= count;
    return taken;
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
  axis.step = numbers.next(), axis.period = numbers.next(), axis.length = numbers.next();
  for (const int64_t size :
       {axis.pixels, axis.stride, axis.per_block, axis.block_step, axis.step, axis.period, axis.length})
    require(size >= 1 && size < kMostPixels);
  axis.starts = numbers.take(axis.period);
  axis.weights = reals.take(axis.period * axis.length);
  // The cells of every block must lie in its pixels. Otherwise a kernel would read outside the image.
  require(axis.per_block <= kMostCells && axis.period <= kMostCells);
  require(axis.block_step * axis.step == axis.period * axis.stride);
  for (int64_t block = 0; block < axis.period; ++block)
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

BlockPlan read_block_plan(const int64_t* numbers, int64_t count, const double* reals, int64_t real_count,
                          const int64_t* region) {
  Reader<int64_t> ints{numbers, count};
  Reader<double> doubles{reals, real_count};
  BlockPlan plan;
  plan.bins = ints.next();
  require(plan.bins >= 1 && plan.bins < (int64_t{1} << 31));
  plan.sqrt = ints.below(2);
  plan.gradient = static_cast<Gradient>(ints.below(2));
  plan.strongest = ints.below(2);
  plan.is_signed = ints.below(2);
  plan.from_horizontal = ints.below(2);
  plan.votes = static_cast<Votes>(ints.below(2));
  plan.norm = static_cast<Norm>(ints.below(6));
  plan.arithmetic = static_cast<Arithmetic>(ints.below(3));
  plan.layout = static_cast<Layout>(ints.below(3));
  plan.eps = doubles.next(), plan.eps_again = doubles.next(), plan.clip = doubles.next();
  plan.y = read_axis(ints, doubles);
  plan.x = read_axis(ints, doubles);
  require(ints.left == 0 && doubles.left == 0);
  plan.region = {region[0], region[1], region[2], region[3], region[4]};
  require(plan.region.height >= 0 && plan.region.width >= 0);
  for (const int64_t number : {plan.region.top, plan.region.left, plan.region.height, plan.region.width})
    require(number > -kMostPixels && number < kMostPixels);
  product({plan.block_rows(), plan.block_columns(), plan.y.per_block, plan.x.per_block, plan.bins});
  return plan;
}

BlockStrides BlockPlan::strides() const {
  const int64_t rows = block_rows(), columns = block_columns(), down = y.per_block, across = x.per_block;
  switch (layout) {
    case Layout::planes: return {columns, 1, across * bins * rows * columns, bins * rows * columns, rows * columns};
    case Layout::rows: return {columns * entries(), entries(), across * bins, bins, 1};
    case Layout::columns: return {entries(), rows * entries(), bins, down * bins, 1};
  }
  return {};
}

}  // namespace maskfeat
