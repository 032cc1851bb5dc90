// From a gradient to its bin or its angle, in every dialect and on every device. The orientation of a gradient is the
// angle of (cosine, sine), which are its components in the order that the dialect takes. Both are multiplied by the
// magnitude. V is a number or, on the CPU, a vector of numbers.
#pragma once

#include <cmath>
#include <type_traits>

#include "hog/math.h"
#include "hog/plan.h"

namespace maskfeat {

// The edges of hard bins that a gradient is compared with. A gradient has reached edge k where sine * cot(k) >= cosine.
// A gradient in the half plane sine > 0 or (sine = 0, cosine >= 0) starts at bin 0. It is compared with the edges
// begin[0] to end[0] - 1. One outside of it is negated, starts at bin `negated_bin`, and is compared with the edges
// begin[1] to end[1] - 1. Unsigned orientations have the same bins on both sides.
struct BinEdges {
  int64_t begin[2], end[2];
  int64_t negated_bin;

  BinEdges() = default;
  INLINE BinEdges(int64_t bins, bool is_signed)
      : begin{1, is_signed ? bins / 2 + 1 : 1},
        end{is_signed ? (bins + 1) / 2 : bins, bins},
        negated_bin(is_signed ? bins / 2 : 0) {}
};

// The cotangent of edge k, as exact as the one above.
inline double edge_cotangent(int64_t k, int64_t bins, bool is_signed) {
  if (!is_signed) return edge_cotangent(k, bins);
  return 2 * k == bins ? 0.0 : edge_cotangent(2 * k % bins, bins);
}

// The bin that holds an orientation. It takes one product and one comparison for each edge, which is exact on bytes.
template <typename T>
INLINE int64_t hard_bin(T sine, T cosine, const BinEdges& edges,
                        const T* cotangents) {  // [bins], the first is not used
  const bool negated = half_plane(sine, cosine) < T(0);
  if (negated) sine = -sine, cosine = -cosine;
  int64_t bin = negated ? edges.negated_bin : 0;
  const int64_t end = negated ? edges.end[1] : edges.end[0];  // indexed, the arrays would go to a GPU's memory
  for (int64_t k = negated ? edges.begin[1] : edges.begin[0]; k < end; ++k)
    bin += sine > T(0) && sine * cotangents[k] >= cosine;
  return bin;
}

// The bin as scikit-image decides it, by a rounded angle. An angle that is rounded to 180 degrees gives `bins`.
inline int64_t skimage_bin(double sine, double cosine, const BlockPlan& plan) {
  const double side = 180.0 / static_cast<double>(plan.bins);
  double degrees = std::fmod(plan.arc_tangent(sine, cosine) * (180.0 / kPi), 180.0);
  if (degrees < 0) degrees += 180.0;
  int64_t bin = 0;
  while (bin < plan.bins && degrees >= side * static_cast<double>(bin + 1)) ++bin;
  return bin;
}

// The angle of (larger, smaller), in radians from 0 to pi / 4. It is twice the arc tangent of t = smaller / (larger +
// magnitude), the tangent of half the angle. t is at most tan(pi / 8). Up to there this polynomial is off by 3e-8.
template <typename V>
INLINE V octant_angle(V smaller, V larger, V magnitude) {
  const V t = smaller / (larger + magnitude), u = t * t;
  return t * (2.0f + u * (-0.66666615f +
                          u * (0.3999642134f + u * (-0.2847994268f + u * (0.2114544958f - u * 0.1206601709f)))));
}

// The angle in degrees as cv::cartToPolar approximates it. It is off by up to 0.01.
constexpr float kArc1 = 57.283623f, kArc3 = -18.667446f, kArc5 = 8.9140005f,
                kArc7 = -2.5397246f;  // factors of a, a^3, ...
template <typename V>
INLINE V opencv_arc_tangent(V a) {
  const V u = a * a;
  return (((kArc7 * u + kArc5) * u + kArc3) * u + kArc1) * a;
}
template <typename V>
INLINE V opencv_octant_degrees(V smaller, V larger) {
  return opencv_arc_tangent<V>(smaller / (larger + 2.220446e-16f));
}

// The derivative of this angle by the smaller component. That by the larger one is -smaller / larger times as much.
template <typename V>
INLINE V opencv_octant_slope(V smaller, V larger) {
  const V a = smaller / (larger + 2.220446e-16f), u = a * a;
  return (((7 * kArc7 * u + 5 * kArc5) * u + 3 * kArc3) * u + kArc1) / (larger + 2.220446e-16f);
}

template <typename V>
INLINE V absolute(V v) {
  return v < 0 ? -v : v;
}

// From the angle in an octant to the angle in the full circle. `circle` is the full circle in units of the angle.
template <typename V, typename T>
INLINE V full_circle(V octant, V sine, V cosine, T circle) {
  const V s = absolute(sine), c = absolute(cosine);
  V angle = s > c ? circle / 4 - octant : octant;
  angle = cosine < 0 ? circle / 2 - angle : angle;
  return sine < 0 ? circle - angle : angle;
}

}  // namespace maskfeat
