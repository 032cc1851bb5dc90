// Registers the kernels with PyTorch, per device, through the stable ABI (one shared object for every torch >= 2.10).
// Schemas, fake kernels and batching rules are in maskfeat_kernels/ops.py, checks with messages for users in hog.py;
// the checks here keep a direct call of the op inside its memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "hog_cpu.h"

namespace {

using maskfeat::Dtype;
using maskfeat::HogParameters;
using maskfeat::ImageView;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Dtype pixel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return Dtype::uint8;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: STD_TORCH_CHECK(false, "hog: pixels must be uint8, float16, bfloat16, float32 or float64");
  }
}

// [lead..., H, W] in place: neighbouring leading axes that step evenly through memory become one.
ImageView view_images(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t spatial = x.dim() - 2;
  STD_TORCH_CHECK(spatial >= 0, "hog: x must have the axes [..., H, W]");
  ImageView view;
  view.lead = 0;
  view.data = x.data_ptr();
  view.dtype = pixel_dtype(x.scalar_type());
  view.height = sizes[spatial], view.width = sizes[spatial + 1];
  view.row_stride = strides[spatial], view.column_stride = strides[spatial + 1];
  for (int64_t axis = 0; axis < spatial; ++axis) {
    if (sizes[axis] == 1) continue;
    if (view.lead > 0 && view.lead_stride[view.lead - 1] == sizes[axis] * strides[axis]) {
      view.lead_size[view.lead - 1] *= sizes[axis];
      view.lead_stride[view.lead - 1] = strides[axis];
      continue;
    }
    view.lead_size[view.lead] = sizes[axis];
    view.lead_stride[view.lead++] = strides[axis];
  }
  return view;
}

Tensor hog_cpu(const Tensor& x, int64_t bins, int64_t cell_h, int64_t cell_w, int64_t gaussian_window) {
  const ImageView image = view_images(x);
  const HogParameters hog{bins, cell_h, cell_w, gaussian_window};
  STD_TORCH_CHECK(bins >= 1 && cell_h >= 1 && cell_w >= 1 && gaussian_window >= 0, "hog: parameters out of range");
  STD_TORCH_CHECK(gaussian_window == 0 || (image.height % gaussian_window == 0 && image.width % gaussian_window == 0),
                  "hog: gaussian_window ", gaussian_window, " does not tile the image");
  const int64_t cell_rows = image.height / cell_h, cell_columns = image.width / cell_w;
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end() - 2);
  const int64_t planes = std::accumulate(size.begin(), size.end(), int64_t{1}, std::multiplies<>());
  size.insert(size.end(), {bins, cell_rows, cell_columns});
  const bool wide = image.dtype == Dtype::float64;
  Tensor out = torch::stable::new_empty(x, size, wide ? ScalarType::Double : ScalarType::Float);
  if (out.numel() == 0) return out;
  const int64_t items_per_thread = std::max<int64_t>(1, 32768 / (cell_h * image.width));
  torch::stable::parallel_for(0, planes * cell_rows, items_per_thread, [&](int64_t begin, int64_t end) {
    maskfeat::hog_cpu(image, hog, out.data_ptr(), begin, end);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CPU, m) { m.impl("hog", TORCH_BOX(&hog_cpu)); }
