// Registers HOG with PyTorch, per device, through the stable ABI (one shared object for every torch >= 2.10). Schemas, fake
// kernels and batching rules are in maskfeat_kernels/ops.py, checks with messages for users in hog.py; the checks here keep
// a direct call of an op inside its memory.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/torch_image.h"
#include "hog/cpu/cells.h"
#ifdef MASKFEAT_CUDA
#include "hog/cuda/cells.h"
#endif

namespace {

using maskfeat::Dtype;
using maskfeat::HogParameters;
using maskfeat::ImageView;
using maskfeat::PatchView;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

HogParameters hog_parameters(const ImageView& image, int64_t bins, int64_t cell_h, int64_t cell_w, int64_t window) {
  STD_TORCH_CHECK(bins >= 1 && cell_h >= 1 && cell_w >= 1 && window >= 0, "parameters out of range");
  STD_TORCH_CHECK(window == 0 || (image.height % window == 0 && image.width % window == 0), "gaussian_window ", window,
                  " does not tile the image");
  return {bins, cell_h, cell_w, window};
}

// The kernels of a device, with the same names and arguments for all devices.
struct Cpu : maskfeat::CpuDevice {
  using CpuDevice::CpuDevice;

  void hog(const ImageView& image, const HogParameters& hog, int64_t cell_rows, void* out) const {
    const int64_t grain = std::max<int64_t>(1, maskfeat::kPixelsPerThread / (hog.cell_h * image.width));
    share(cell_rows, grain, [&](int64_t begin, int64_t end) { maskfeat::hog_cpu(image, hog, out, begin, end); });
  }

  void hog_tokens(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out) const {
    const int64_t batch = image.lead_size[0], channels = image.lead_size[2];
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t k = 0; k < patches.count; ++k)
        if (!patches.holds(patches.id(b, k)))
          maskfeat::refuse_id(b, k, patches.id(b, k), patches.frames * patches.grid_h * patches.grid_w);
    const int64_t grain = std::max<int64_t>(1, maskfeat::kPixelsPerThread / (channels * patches.side * patches.side));
    share(batch * patches.count, grain,
          [&](int64_t begin, int64_t end) { maskfeat::hog_tokens_cpu(image, patches, hog, out, begin, end); });
  }
};

#ifdef MASKFEAT_CUDA
struct Cuda : maskfeat::CudaDevice {
  using CudaDevice::CudaDevice;

  // A ValueError in Python.
  static void check_limits(const ImageView& image, const HogParameters& hog) {
    if (hog.bins > maskfeat::kCudaMaxBins || hog.gaussian_window > maskfeat::kCudaMaxWindow)
      throw std::invalid_argument("backend 'cuda' takes at most 256 bins and a gaussian_window of at most 256, got " +
                                  std::to_string(hog.bins) + " and " + std::to_string(hog.gaussian_window));
    STD_TORCH_CHECK(std::max(image.height, image.width) < (int64_t{1} << 31) - 256, "the image is too large");
  }

  void hog(const ImageView& image, const HogParameters& hog, int64_t, void* out) const {
    check_limits(image, hog);
    check(maskfeat::hog_cuda(image, hog, out, stream));
  }
  void hog_tokens(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out) const {
    check_limits(image, hog);
    check(maskfeat::hog_tokens_cuda(image, patches, hog, out, stream));
  }
};
#endif

template <typename Device>
Tensor hog(const Tensor& x, int64_t bins, int64_t cell_h, int64_t cell_w, int64_t gaussian_window) {
  const Device device{&x};
  const ImageView image = maskfeat::view_images(x, x.dim() - 2, true);
  const HogParameters hog = hog_parameters(image, bins, cell_h, cell_w, gaussian_window);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end() - 2);
  size.insert(size.end(), {bins, image.height / cell_h, image.width / cell_w});
  Tensor out = maskfeat::new_histograms(x, size);
  const int64_t cells = out.numel() / bins;
  if (cells > 0) device.hog(image, hog, cells / (image.width / cell_w), out.data_ptr());
  return out;
}

template <typename Device>
Tensor hog_tokens(const Tensor& x, const Tensor& token_ids, int64_t patch_size, int64_t bins, int64_t cell_h,
                  int64_t cell_w, int64_t gaussian_window) {
  const Device device{&x, &token_ids};
  STD_TORCH_CHECK(x.dim() == 5, "x must have the axes [B, T, C, H, W]");
  const ImageView image = maskfeat::view_images(x, x.dim() - 2, false);
  const HogParameters hog = hog_parameters(image, bins, cell_h, cell_w, gaussian_window);
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
  if (out.numel() > 0) device.hog_tokens(image, patches, hog, out.data_ptr());
  return out;
}

template <typename Device, typename Library>
void register_all(Library& m) {
  m.impl("hog", TORCH_BOX(&hog<Device>));
  m.impl("hog_tokens", TORCH_BOX(&hog_tokens<Device>));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CPU, m) { register_all<Cpu>(m); }
#ifdef MASKFEAT_CUDA
STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CUDA, m) { register_all<Cuda>(m); }
#endif
