// Rows of tokens in memory that somebody else owns, and the ids and masks that choose among them. Every device sums
// rows in the order that is given here.
#pragma once

#include "common/portable.h"

namespace maskfeat {

// Tokens [B, N, D] in place. Strides count elements and may have any value.
struct TokenView {
  const void* data;
  Dtype dtype;
  int64_t batch, length, width;  // B, N, D
  int64_t batch_stride, row_stride, column_stride;
};

// Token ids [B, K] or a mask [B, N], also in place.
template <typename T>
struct TableView {
  const T* data;
  int64_t columns;
  int64_t row_stride, column_stride;

  INLINE T at(int64_t row, int64_t column) const { return data[row * row_stride + column * column_stride]; }
};
using IdView = TableView<int64_t>;
using MaskView = TableView<bool>;

// Sums over many rows go by slices and chunks. Rows are added to the sum of their slice one after the other, and slices
// to the sum of their chunk. The sums of the chunks are rows again, and are summed in the same way, until one is left.
constexpr int64_t kSliceRows = 32;
constexpr int64_t kChunkSlices = 8;
constexpr int64_t kChunkRows = kSliceRows * kChunkSlices;

constexpr int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::uint8 ? 1 : dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// The type in which a dtype is summed: double for double, else float.
template <typename T>
using Wide = decltype(widen(T()));

// The nearest T, ties to even. This is the way back from widen().
template <typename T>
INLINE T narrow(Wide<T> value) {
  return value;
}
template <>
INLINE BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
// The float adder does the rounding. Let p be the power of two in the value, or that of the smallest normal half. Four
// times the value, added to 2^13 times p, keeps just the ten bits of a half. A product with 2^112 on the way makes a
// value that is too large for a half infinite.
template <>
INLINE Float16 narrow<Float16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  const float clipped = (bit_cast<float>(magnitude) * 0x1p112f) * 0x1p-110f;
  const uint32_t exponent = magnitude & 0x7f800000;
  const float power = bit_cast<float>((exponent < 0x38800000 ? 0x38800000 : exponent) + 0x07800000);
  const uint32_t sum = bit_cast<uint32_t>(clipped + power);
  return {static_cast<uint16_t>(sign | ((sum >> 13 & 0x7c00) + (sum & 0xfff)))};
}

}  // namespace maskfeat
