// Tensors as images, and as results of a HOG.
#pragma once

#include <vector>

#include "common/torch_device.h"

namespace maskfeat {

constexpr int64_t kPixelsPerThread = 1 << 15;  // some 50 us of work; another thread costs 10 us

// A view of [lead..., (other axes,) H, W] in place, with this number of leading axes. With `merge`, neighbouring
// leading axes that step evenly through memory become one.
inline ImageView view_images(const torch::stable::Tensor& x, int64_t leading, bool merge) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t spatial = x.dim() - 2;
  STD_TORCH_CHECK(spatial >= 0 && spatial <= ImageView::kMaxLead, "x must have the axes [..., H, W]");
  ImageView view;
  view.data = x.data_ptr();
  view.dtype = dtype_of(x);
  view.height = sizes[spatial], view.width = sizes[spatial + 1];
  view.row_stride = strides[spatial], view.column_stride = strides[spatial + 1];
  view.lead = 0;
  for (int64_t axis = 0; axis < leading; ++axis) {
    if (merge && sizes[axis] == 1) continue;
    const bool even = view.lead > 0 && view.lead_stride[view.lead - 1] == sizes[axis] * strides[axis];
    if (!(merge && even)) view.lead_size[view.lead++] = 1;
    view.lead_size[view.lead - 1] *= sizes[axis];
    view.lead_stride[view.lead - 1] = strides[axis];
  }
  return view;
}

// Uninitialised results: float64 for float64 images, else float32.
inline torch::stable::Tensor new_histograms(const torch::stable::Tensor& x, const std::vector<int64_t>& size) {
  using torch::headeronly::ScalarType;
  const bool wide = x.scalar_type() == ScalarType::Double;
  return new_empty(x, size, wide ? ScalarType::Double : ScalarType::Float);
}

}  // namespace maskfeat
