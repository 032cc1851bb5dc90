// A batch of one-channel image planes in memory that somebody else owns, and which pixel stands for one outside.
#pragma once

#include "common/portable.h"

namespace maskfeat {

// Planes [lead..., H, W] with any strides, counted in elements. Leading axes that can be walked as one are merged, so
// that few remain (one for a contiguous batch).
struct ImageView {
  static constexpr int kMaxLead = 62;  // torch has at most 64 axes
  const void* data;
  Dtype dtype;
  int32_t lead;
  int64_t lead_size[kMaxLead];
  int64_t lead_stride[kMaxLead];
  int64_t height, width;
  int64_t row_stride, column_stride;

  INLINE int64_t plane_offset(int64_t plane) const {
    int64_t offset = 0;
    for (int axis = lead - 1; axis > 0; --axis) {
      offset += plane % lead_size[axis] * lead_stride[axis];
      plane /= lead_size[axis];
    }
    return lead > 0 ? offset + plane * lead_stride[0] : 0;
  }
};

// The border rule: an image is mirrored at its end pixels, which are not repeated. Pixel -1 is pixel 1, and n is n - 2; a
// single pixel is its own neighbour. Here i is outside 0 .. n - 1 by at most n - 1.
template <typename Int>
INLINE Int mirror_once(Int i, Int n) {
  const Int mirrored = i < 0 ? -i : (i >= n ? 2 * (n - 1) - i : i);
  return n == 1 ? 0 : mirrored;
}

// The same for any i, by as many mirrors as it takes.
INLINE int64_t mirror(int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  return n == 1 ? 0 : mirror_once((i < 0 ? -i : i) % (2 * (n - 1)), n);
}

}  // namespace maskfeat
