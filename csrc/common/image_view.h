// A batch of image planes in memory that somebody else owns, and the border rule.
#pragma once

#include "common/portable.h"

namespace maskfeat {

// Planes [lead..., H, W] of one channel each. Strides count elements and may have any value. Leading axes that can be
// walked as one are merged: a contiguous batch has one.
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

// The border rule: an image is mirrored at its first and last pixel, which are not repeated. Pixel -1 is pixel 1, and
// pixel n is pixel n - 2. A single pixel is its own neighbour. This function takes -n < i < 2 n - 1.
template <typename Int>
INLINE Int mirror_once(Int i, Int n) {
  const Int mirrored = i < 0 ? -i : (i >= n ? 2 * (n - 1) - i : i);
  return n == 1 ? 0 : mirrored;
}

// The border rule for any i: the mirror images of the image continue without end.
INLINE int64_t mirror(int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  return n == 1 ? 0 : mirror_once((i < 0 ? -i : i) % (2 * (n - 1)), n);
}

}  // namespace maskfeat
