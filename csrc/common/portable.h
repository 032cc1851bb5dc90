// What the C++ and CUDA sources of every op share: functions that run on both, and the types of pixels and tokens.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define INLINE __host__ __device__ __forceinline__
#else
#define INLINE inline
#endif

namespace maskfeat {

constexpr double kPi = 3.14159265358979323846;

// n / by, rounded up; n >= 0, by > 0.
template <typename T>
INLINE constexpr T ceil_div(T n, T by) {
  return (n + by - 1) / by;
}

template <typename To, typename From>
INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

enum class Dtype : int32_t { uint8, float16, bfloat16, float32, float64 };

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// A pixel or token in the type that computes with it. The conversion is exact. A half gets the exponent of a float by a
// product, which also normalises its subnormals.
template <typename T>
INLINE T widen(T value) {
  return value;
}
INLINE int16_t widen(uint8_t value) { return value; }
INLINE float widen(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
INLINE float widen(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const float rebased = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  return bit_cast<float>(bit_cast<uint32_t>(rebased) | special | sign);
}

}  // namespace maskfeat
