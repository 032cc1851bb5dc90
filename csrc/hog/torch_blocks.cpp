// Registers HOG of blocks with PyTorch, per device; as hog/torch.cpp.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/torch_image.h"
#include "hog/cpu/blocks.h"
#ifdef MASKFEAT_CUDA
#include "hog/cuda/blocks.h"
#endif

namespace {

using maskfeat::Channels;
using maskfeat::HogBlocks;
using maskfeat::ImageView;
using torch::stable::Tensor;

// The kernels of a device, with the same names and arguments for all devices.
struct Cpu : maskfeat::CpuDevice {
  using CpuDevice::CpuDevice;

  void forward(const ImageView& image, const Channels& channels, const HogBlocks& hog, int64_t planes,
               void* out) const {
    const int64_t pixels = hog.y.stride * hog.region.width * channels.count;  // of a block row
    share(planes * hog.block_rows(), grain(pixels),
          [&](int64_t begin, int64_t end) { maskfeat::hog_blocks_cpu(image, channels, hog, out, begin, end); });
  }

  void backward(const ImageView& image, const Channels& channels, const HogBlocks& hog, int64_t planes,
                const Tensor& grad, Tensor& grad_x) const {
    const int64_t pixels = image.height * image.width * channels.count;
    const void* from = grad.data_ptr();
    void* to = grad_x.data_ptr();
    share(planes, grain(pixels), [&](int64_t begin, int64_t end) {
      maskfeat::hog_blocks_backward_cpu(image, channels, hog, from, to, begin, end);
    });
  }

  static int64_t grain(int64_t pixels) { return std::max<int64_t>(1, maskfeat::kPixelsPerThread / pixels); }
};

#ifdef MASKFEAT_CUDA
struct Cuda : maskfeat::CudaDevice {
  using CudaDevice::CudaDevice;

  // A ValueError in Python.
  static void check_limits(const HogBlocks& hog) {
    if (const char* why = maskfeat::hog_blocks_cuda_refuses(hog))
      throw std::invalid_argument(std::string("backend 'cuda' cannot compute this HOG: ") + why);
  }

  void forward(const ImageView& image, const Channels& channels, const HogBlocks& hog, int64_t, void* out) const {
    check_limits(hog);
    check(maskfeat::hog_blocks_cuda(image, channels, hog, out, stream));
  }

  void backward(const ImageView& image, const Channels& channels, const HogBlocks& hog, int64_t, const Tensor& grad,
                Tensor& grad_x) const {
    check_limits(hog);
    Tensor grad_blocks = maskfeat::new_empty(grad, {grad.sizes().begin(), grad.sizes().end()});
    check(maskfeat::hog_blocks_backward_cuda(image, channels, hog, grad.data_ptr(), grad_blocks.data_ptr(),
                                             grad_x.data_ptr(), stream));
  }
};
#endif

// [..., C, H, W] as planes, each one histogram's: of a channel, or of all channels when the strongest is taken.
struct Planes {
  ImageView image;
  Channels channels;
  std::vector<int64_t> lead;  // leading axes of the result
  int64_t count;

  Planes(const Tensor& x, const HogBlocks& hog) : channels{1, 0} {
    const bool has_channels = hog.strongest && x.dim() > 2;
    const int64_t leading = std::max<int64_t>(0, x.dim() - (has_channels ? 3 : 2));
    image = maskfeat::view_images(x, leading, true);
    if (has_channels) channels = {x.size(leading), x.stride(leading)};
    lead.assign(x.sizes().begin(), x.sizes().begin() + leading);
    count = maskfeat::product(lead);
    if (channels.count < 1 || channels.count > Channels::kMost)
      throw std::invalid_argument("the strongest of 1 to 2^20 channels can be taken, got " +
                                  std::to_string(channels.count));
    STD_TORCH_CHECK(hog.size() == 0 || (image.height > 0 && image.width > 0), "x must have pixels");
  }
};

HogBlocks read(const std::vector<int64_t>& numbers, const std::vector<double>& reals,
               const std::vector<int64_t>& region) {
  STD_TORCH_CHECK(region.size() == 5, "region must be (top, left, height, width, tie_column)");
  const HogBlocks hog =
      maskfeat::read_hog_blocks(numbers.data(), numbers.size(), reals.data(), reals.size(), region.data());
  STD_TORCH_CHECK(hog.block_rows() > 0 && hog.block_columns() > 0, "the region is smaller than a block");
  return hog;
}

template <typename Device>
Tensor hog_blocks(const Tensor& x, const std::vector<int64_t> numbers, const std::vector<double> reals,
                  const std::vector<int64_t> region, const std::vector<int64_t> shape) {
  const Device device{&x};
  const HogBlocks hog = read(numbers, reals, region);
  const Planes planes(x, hog);
  STD_TORCH_CHECK(maskfeat::product(shape) == hog.size(), "shape does not fit the region");
  std::vector<int64_t> out_shape = planes.lead;
  out_shape.insert(out_shape.end(), shape.begin(), shape.end());
  Tensor out = maskfeat::new_histograms(x, out_shape);
  if (out.numel() > 0) device.forward(planes.image, planes.channels, hog, planes.count, out.data_ptr());
  return out;
}

template <typename Device>
Tensor hog_blocks_backward(const Tensor& grad, const Tensor& x, const std::vector<int64_t> numbers,
                           const std::vector<double> reals, const std::vector<int64_t> region) {
  const Device device{&x, &grad};
  const HogBlocks hog = read(numbers, reals, region);
  const Planes planes(x, hog);
  Tensor grad_x = maskfeat::new_histograms(x, {x.sizes().begin(), x.sizes().end()});
  STD_TORCH_CHECK(
      grad.scalar_type() == grad_x.scalar_type() && grad.numel() == planes.count * hog.size() && grad.is_contiguous(),
      "grad must be contiguous, of the dtype and size of the result");
  if (grad_x.numel() > 0) device.backward(planes.image, planes.channels, hog, planes.count, grad, grad_x);
  return grad_x;
}

template <typename Device, typename Library>
void register_all(Library& m) {
  m.impl("hog_blocks", TORCH_BOX(&hog_blocks<Device>));
  m.impl("hog_blocks_backward", TORCH_BOX(&hog_blocks_backward<Device>));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CPU, m) { register_all<Cpu>(m); }
#ifdef MASKFEAT_CUDA
STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CUDA, m) { register_all<Cuda>(m); }
#endif
