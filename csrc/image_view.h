// A batch of one-channel image planes in memory that somebody else owns, and how its pixels are read.
#pragma once

#include <cstdint>

#include "hog_math.h"

namespace maskfeat {

enum class Dtype : int32_t { uint8, float16, bfloat16, float32, float64 };

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

  HOG_INLINE int64_t plane_offset(int64_t plane) const {
    int64_t offset = 0;
    for (int axis = lead - 1; axis > 0; --axis) {
      offset += plane % lead_size[axis] * lead_stride[axis];
      plane /= lead_size[axis];
    }
    return lead > 0 ? offset + plane * lead_stride[0] : 0;
  }
};

// Patches of images [B, T, C, H, W] (three leading axes, not merged), chosen by ids [B, K] on the grid of whole patches,
// row by row and frame by frame.
struct PatchView {
  const int64_t* ids;
  int64_t count;  // K
  int64_t id_batch_stride, id_stride;
  int64_t side;                    // of a patch, in pixels
  int64_t frames, grid_h, grid_w;  // T, patches down, patches across

  HOG_INLINE int64_t id(int64_t batch, int64_t k) const { return ids[batch * id_batch_stride + k * id_stride]; }
  HOG_INLINE bool holds(int64_t id) const { return id >= 0 && id < frames * grid_h * grid_w; }
  HOG_INLINE int64_t frame(int64_t id) const { return id / (grid_h * grid_w); }
  HOG_INLINE int64_t top(int64_t id) const { return id / grid_w % grid_h * side; }
  HOG_INLINE int64_t left(int64_t id) const { return id % grid_w * side; }
};

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Widening reads, exact. Half precision is rebased by a product, which also rights its subnormals.
template <typename T>
HOG_INLINE T widen(T value) {
  return value;
}
HOG_INLINE int16_t widen(uint8_t value) { return value; }
HOG_INLINE float widen(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
HOG_INLINE float widen(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const float rebased = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  return bit_cast<float>(bit_cast<uint32_t>(rebased) | special | sign);
}

}  // namespace maskfeat
