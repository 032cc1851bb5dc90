// A tensor among a program's arguments as a batch of images.
#pragma once

#include <algorithm>

#include "common/image_view.h"
#include "driver.h"

// Of x [lead..., H, W]; `inner` axes before H are left to the caller.
inline maskfeat::ImageView images_of(const Tensor& x, size_t inner = 0) {
  const size_t axes = x.size.size(), lead = axes - 2 - inner;
  maskfeat::ImageView image{};
  image.data = x.data;
  image.dtype = static_cast<maskfeat::Dtype>(x.dtype);
  image.lead = static_cast<int32_t>(lead);
  std::copy_n(x.size.begin(), lead, image.lead_size);
  std::copy_n(x.stride.begin(), lead, image.lead_stride);
  image.height = x.size[axes - 2], image.width = x.size[axes - 1];
  image.row_stride = x.stride[axes - 2], image.column_stride = x.stride[axes - 1];
  return image;
}
