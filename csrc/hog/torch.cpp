// Registers the ops of HOG with PyTorch, for each device. They use the stable ABI, so that one shared object serves
// every torch from 2.10 on. Python declares the schemas and checks arguments with messages for users. The checks here
// keep a direct call of an op inside its memory.
//
// The ops of cells take four numbers, and their kernels compute bin edges and window from them, as Python does too. Lists
// of edges would cost more: on one cell, an op of blocks, which takes its plan as lists, needs twice the time.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/torch_image.h"
#include "hog/cpu/blocks.h"
#include "hog/cpu/cells.h"
#include "hog/cpu/points.h"
#ifdef MASKFEAT_CUDA
#include "hog/cuda/blocks.h"
#include "hog/cuda/cells.h"
#endif

namespace {

using maskfeat::BlockPlan;
using maskfeat::CellPlan;
using maskfeat::Channels;
using maskfeat::Corners;
using maskfeat::ImageView;
using maskfeat::PatchView;
using maskfeat::Scale;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels of a device. All devices have the same names and arguments.
struct Cpu : maskfeat::CpuDevice {
  using CpuDevice::CpuDevice;

  void cells(const ImageView& image, const CellPlan& plan, int64_t cell_rows, void* out) const {
    share(cell_rows, grain(plan.cell_h * image.width),
          [&](int64_t begin, int64_t end) { maskfeat::hog_cells_cpu(image, plan, out, begin, end); });
  }

  void scales(const ImageView& image, const CellPlan& plan, const std::vector<Scale>& scales, int64_t planes) const {
    const int64_t count = scales.size(), band = maskfeat::band_rows(scales.data(), count);
    share(planes * maskfeat::ceil_div(scales[0].rows, band), grain(band * plan.cell_h * image.width),
          [&](int64_t begin, int64_t end) { maskfeat::hog_scales_cpu(image, plan, scales.data(), count, begin, end); });
  }

  void patches(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out) const {
    const int64_t batch = image.lead_size[0], channels = image.lead_size[2];
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t k = 0; k < patches.count; ++k)
        if (!patches.holds(patches.id(b, k)))
          maskfeat::refuse_id(b, k, patches.id(b, k), patches.frames * patches.grid_h * patches.grid_w);
    share(batch * patches.count, grain(channels * patches.side * patches.side),
          [&](int64_t begin, int64_t end) { maskfeat::hog_patches_cpu(image, patches, plan, out, begin, end); });
  }

  void blocks(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t planes,
              void* out) const {
    share(planes * plan.block_rows(), grain(plan.y.stride * plan.region.width * channels.count),
          [&](int64_t begin, int64_t end) { maskfeat::hog_blocks_cpu(image, channels, plan, out, begin, end); });
  }

  void blocks_backward(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t planes,
                       const Tensor& grad, Tensor& grad_x) const {
    const void* from = grad.data_ptr();
    void* to = grad_x.data_ptr();
    share(planes, grain(image.height * image.width * channels.count), [&](int64_t begin, int64_t end) {
      maskfeat::hog_blocks_backward_cpu(image, channels, plan, from, to, begin, end);
    });
  }

  // How many items of `pixels` pixels a thread does at least.
  static int64_t grain(int64_t pixels) { return std::max<int64_t>(1, maskfeat::kPixelsPerThread / pixels); }
};

#ifdef MASKFEAT_CUDA
struct Cuda : maskfeat::CudaDevice {
  using CudaDevice::CudaDevice;

  void cells(const ImageView& image, const CellPlan& plan, int64_t, void* out) const {
    check_limits(image, plan);
    check(maskfeat::hog_cells_cuda(image, plan, out, stream));
  }

  void scales(const ImageView& image, const CellPlan& plan, const std::vector<Scale>& scales, int64_t planes) const {
    check_limits(image, plan);
    check(maskfeat::hog_scales_cuda(image, plan, scales.data(), scales.size(), planes, stream));
  }

  void patches(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out) const {
    check_limits(image, plan);
    check(maskfeat::hog_patches_cuda(image, patches, plan, out, stream));
  }

  void blocks(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t, void* out) const {
    check_limits(plan);
    check(maskfeat::hog_blocks_cuda(image, channels, plan, out, stream));
  }

  void blocks_backward(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t,
                       const Tensor& grad, Tensor& grad_x) const {
    check_limits(plan);
    Tensor grad_blocks = maskfeat::new_empty(grad, {grad.sizes().begin(), grad.sizes().end()});
    check(maskfeat::hog_blocks_backward_cuda(image, channels, plan, grad.data_ptr(), grad_blocks.data_ptr(),
                                             grad_x.data_ptr(), stream));
  }

  // Both throw what is a ValueError in Python.
  static void check_limits(const ImageView& image, const CellPlan& plan) {
    if (plan.bins > maskfeat::kCudaMaxBins || plan.gaussian_window > maskfeat::kCudaMaxWindow)
      throw std::invalid_argument("backend 'cuda' takes at most 256 bins and a gaussian_window of at most 256, got " +
                                  std::to_string(plan.bins) + " and " + std::to_string(plan.gaussian_window));
    STD_TORCH_CHECK(std::max(image.height, image.width) < (int64_t{1} << 31) - 256, "the image is too large");
  }
  static void check_limits(const BlockPlan& plan) {
    if (const char* why = maskfeat::hog_blocks_cuda_refuses(plan))
      throw std::invalid_argument(std::string("backend 'cuda' cannot compute this HOG: ") + why);
  }
};
#endif

CellPlan read_cell_plan(const ImageView& image, int64_t bins, int64_t cell_h, int64_t cell_w, int64_t window) {
  STD_TORCH_CHECK(bins >= 1 && cell_h >= 1 && cell_w >= 1 && window >= 0, "parameters out of range");
  STD_TORCH_CHECK(window == 0 || (image.height % window == 0 && image.width % window == 0), "gaussian_window ", window,
                  " does not tile the image");
  return {bins, cell_h, cell_w, window};
}

template <typename Device>
Tensor hog_op(const Tensor& x, int64_t bins, int64_t cell_h, int64_t cell_w, int64_t gaussian_window) {
  const Device device{&x};
  const ImageView image = maskfeat::view_images(x, x.dim() - 2, true);
  const CellPlan plan = read_cell_plan(image, bins, cell_h, cell_w, gaussian_window);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end() - 2);
  size.insert(size.end(), {bins, image.height / cell_h, image.width / cell_w});
  Tensor out = maskfeat::new_histograms(x, size);
  const int64_t cells = out.numel() / bins;
  if (cells > 0) device.cells(image, plan, cells / (image.width / cell_w), out.data_ptr());
  return out;
}

// `cells` has the (height, width) of each size, from fine to coarse.
template <typename Device>
std::vector<Tensor> hog_scales_op(const Tensor& x, int64_t bins, const std::vector<int64_t> cells,
                                  int64_t gaussian_window) {
  const Device device{&x};
  const ImageView image = maskfeat::view_images(x, x.dim() - 2, true);
  STD_TORCH_CHECK(!cells.empty() && cells.size() % 2 == 0, "cells must be (height, width) of each size");
  CellPlan plan = read_cell_plan(image, bins, cells[0], cells[1], gaussian_window);
  plan.sums_only = cells.size() > 2;
  std::vector<Tensor> results;
  std::vector<Scale> scales;
  for (size_t i = 0; i < cells.size(); i += 2) {
    const int64_t *cell = &cells[i], *before = i > 0 ? cell - 2 : cell;
    for (const int axis : {0, 1})
      STD_TORCH_CHECK(cell[axis] >= 1 && cell[axis] < int64_t{1} << 62 && cell[axis] % before[axis] == 0,
                      "each cell must be a multiple of the one before, and below 2^62");
    std::vector<int64_t> size(x.sizes().begin(), x.sizes().end() - 2);
    size.insert(size.end(), {bins, image.height / cell[0], image.width / cell[1]});
    results.push_back(maskfeat::new_histograms(x, size));
    scales.push_back({results.back().data_ptr(), image.height / cell[0], image.width / cell[1], cell[0] / before[0],
                      cell[1] / before[1]});
  }
  if (const int64_t numbers = results[0].numel())
    device.scales(image, plan, scales, numbers / (bins * scales[0].size()));
  return results;
}

template <typename Device>
Tensor hog_tokens_op(const Tensor& x, const Tensor& token_ids, int64_t patch_size, int64_t bins, int64_t cell_h,
                     int64_t cell_w, int64_t gaussian_window) {
  const Device device{&x, &token_ids};
  STD_TORCH_CHECK(x.dim() == 5, "x must have the axes [B, T, C, H, W]");
  const ImageView image = maskfeat::view_images(x, x.dim() - 2, false);
  const CellPlan plan = read_cell_plan(image, bins, cell_h, cell_w, gaussian_window);
  STD_TORCH_CHECK(patch_size >= 1 && patch_size % cell_h == 0 && patch_size % cell_w == 0,
                  "patch_size must be a multiple of the cell");
  STD_TORCH_CHECK(token_ids.dim() == 2 && token_ids.size(0) == x.size(0), "token_ids must be [B, K]");
  STD_TORCH_CHECK(token_ids.scalar_type() == ScalarType::Long, "token_ids must be int64");
  const PatchView patches{static_cast<const int64_t*>(token_ids.data_ptr()),
                          token_ids.size(1),
                          token_ids.stride(0),
                          token_ids.stride(1),
                          patch_size,
                          x.size(1),
                          image.height / patch_size,
                          image.width / patch_size};
  const int64_t features = x.size(2) * bins * (patch_size / cell_h) * (patch_size / cell_w);
  Tensor out = maskfeat::new_histograms(x, {x.size(0), patches.count, features});
  if (out.numel() > 0) device.patches(image, patches, plan, out.data_ptr());
  return out;
}

// Pixels [..., C, H, W] as planes. Each plane has one result. It is a channel, or all channels where the strongest is
// taken.
struct Planes {
  ImageView image;
  Channels channels;
  std::vector<int64_t> lead;  // leading axes of the result
  int64_t count;

  Planes(const Tensor& x, const BlockPlan& plan) : channels{1, 0} {
    const bool has_channels = plan.strongest && x.dim() > 2;
    const int64_t leading = std::max<int64_t>(0, x.dim() - (has_channels ? 3 : 2));
    image = maskfeat::view_images(x, leading, true);
    if (has_channels) channels = {x.size(leading), x.stride(leading)};
    lead.assign(x.sizes().begin(), x.sizes().begin() + leading);
    count = maskfeat::product(lead);
    if (channels.count < 1 || channels.count > Channels::kMost)
      throw std::invalid_argument("the strongest of 1 to 2^20 channels can be taken, got " +
                                  std::to_string(channels.count));
    STD_TORCH_CHECK(plan.size() == 0 || (image.height > 0 && image.width > 0), "x must have pixels");
  }
};

BlockPlan read_block_plan(const std::vector<int64_t>& numbers, const std::vector<double>& reals,
                          const std::vector<int64_t>& region) {
  STD_TORCH_CHECK(region.size() == 5, "region must be (top, left, height, width, tie_column)");
  const BlockPlan plan =
      maskfeat::read_block_plan(numbers.data(), numbers.size(), reals.data(), reals.size(), region.data());
  STD_TORCH_CHECK(plan.block_rows() > 0 && plan.block_columns() > 0, "the region is smaller than a block");
  return plan;
}

template <typename Device>
Tensor hog_blocks_op(const Tensor& x, const std::vector<int64_t> numbers, const std::vector<double> reals,
                     const std::vector<int64_t> region, const std::vector<int64_t> shape) {
  const Device device{&x};
  const BlockPlan plan = read_block_plan(numbers, reals, region);
  const Planes planes(x, plan);
  STD_TORCH_CHECK(maskfeat::product(shape) == plan.size(), "shape does not fit the region");
  std::vector<int64_t> out_shape = planes.lead;
  out_shape.insert(out_shape.end(), shape.begin(), shape.end());
  Tensor out = maskfeat::new_histograms(x, out_shape);
  if (out.numel() > 0) device.blocks(planes.image, planes.channels, plan, planes.count, out.data_ptr());
  return out;
}

template <typename Device>
Tensor hog_blocks_backward_op(const Tensor& grad, const Tensor& x, const std::vector<int64_t> numbers,
                              const std::vector<double> reals, const std::vector<int64_t> region) {
  const Device device{&x, &grad};
  const BlockPlan plan = read_block_plan(numbers, reals, region);
  const Planes planes(x, plan);
  Tensor grad_x = maskfeat::new_histograms(x, {x.sizes().begin(), x.sizes().end()});
  STD_TORCH_CHECK(
      grad.scalar_type() == grad_x.scalar_type() && grad.numel() == planes.count * plan.size() && grad.is_contiguous(),
      "grad must be contiguous, of the dtype and size of the result");
  if (grad_x.numel() > 0) device.blocks_backward(planes.image, planes.channels, plan, planes.count, grad, grad_x);
  return grad_x;
}

// For the CPU alone. Elsewhere windows are cut out, and their blocks computed by hog_blocks.
Tensor hog_blocks_at_op(const Tensor& x, const Tensor& points, const std::vector<int64_t> numbers,
                        const std::vector<double> reals, const std::vector<int64_t> region,
                        const std::vector<int64_t> shape) {
  const Cpu device{&x, &points};
  const BlockPlan plan = read_block_plan(numbers, reals, region);
  const Planes planes(x, plan);
  const int64_t of_image = plan.strongest || x.dim() == 2 ? 1 : x.size(x.dim() - 3);
  const int64_t leading = std::max<int64_t>(x.dim() - 3, 0);
  STD_TORCH_CHECK(maskfeat::product(shape) == plan.size(), "shape does not fit the region");
  STD_TORCH_CHECK(points.scalar_type() == ScalarType::Long && points.is_contiguous() && points.dim() >= 2 &&
                      points.size(points.dim() - 1) == 2 && (points.dim() == 2 || points.dim() == leading + 2),
                  "points must be [N, 2] or [..., N, 2], int64 and contiguous");
  std::vector<int64_t> out_shape(x.sizes().begin(), x.sizes().begin() + leading);
  const int64_t images = maskfeat::product(out_shape);
  for (int64_t axis = 0; axis < points.dim() - 2; ++axis)
    STD_TORCH_CHECK(points.size(axis) == x.size(axis), "points must have the leading axes of x");
  const Corners corners{static_cast<const int64_t*>(points.data_ptr()), points.size(points.dim() - 2), of_image,
                        points.dim() == 2};
  maskfeat::check_corners(corners, corners.is_shared ? 1 : images);
  out_shape.push_back(corners.count);
  if (!plan.strongest && x.dim() > 2) out_shape.push_back(of_image);
  out_shape.insert(out_shape.end(), shape.begin(), shape.end());
  Tensor out = maskfeat::new_histograms(x, out_shape);
  if (out.numel() == 0) return out;
  try {
    maskfeat::hog_points_cpu(
        planes.image, planes.channels, plan, corners, planes.count, out.data_ptr(),
        [](int64_t count, int64_t pixels, const auto& run) { Cpu::share(count, Cpu::grain(pixels), run); });
  } catch (const std::bad_alloc&) {
    maskfeat::refuse_memory("DefaultCPUAllocator: can't allocate memory: scratch of a kernel");
  }
  return out;
}

template <typename Device, typename Library>
void register_all(Library& m) {
  m.impl("hog", TORCH_BOX(&hog_op<Device>));
  m.impl("hog_scales", TORCH_BOX(&hog_scales_op<Device>));
  m.impl("hog_tokens", TORCH_BOX(&hog_tokens_op<Device>));
  m.impl("hog_blocks", TORCH_BOX(&hog_blocks_op<Device>));
  m.impl("hog_blocks_backward", TORCH_BOX(&hog_blocks_backward_op<Device>));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CPU, m) {
  register_all<Cpu>(m);
  m.impl("hog_blocks_at", TORCH_BOX(&hog_blocks_at_op));
}
#ifdef MASKFEAT_CUDA
STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CUDA, m) { register_all<Cuda>(m); }
#endif
