// The maths of a vote and of a block, in every dialect, shared by the kernels of all devices. V is a number or, on the CPU, a
// vector of numbers. The orientation of a gradient is the angle of (cosine, sine), both times its magnitude.
#pragma once

#include <cmath>
#include <type_traits>

#include "hog/math.h"
#include "hog/plan.h"

namespace maskfeat {

// Edges of hard bins in the half plane sine > 0 or (sine = 0, cosine >= 0), where edge k is reached where sine * cot >= cosine.
// With signed orientations, a gradient that had to be turned around to lie there has passed `turned` edges already, and then
// meets those from first[1] on; the others meet those from first[0] to first[1] - 1.
struct BinEdges {
  int64_t begin[2], end[2];  // of the edges k that a gradient meets: as it is [0], and turned around [1]
  int64_t turned;            // edges up to 180 degrees

  BinEdges() = default;
  INLINE BinEdges(int64_t bins, bool is_signed)
      : begin{1, is_signed ? bins / 2 + 1 : 1},
        end{is_signed ? (bins + 1) / 2 : bins, bins},
        turned(is_signed ? bins / 2 : 0) {}
};

// cot of edge k; see edge_cotangent() for its exactness.
inline double bin_edge_cotangent(int64_t k, int64_t bins, bool is_signed) {
  if (!is_signed) return edge_cotangent(k, bins);
  return 2 * k == bins ? 0.0 : edge_cotangent(2 * k % bins, bins);
}

// The bin that holds an orientation, by comparisons alone: one product and one comparison an edge, exact on bytes.
template <typename T>
INLINE int64_t hard_bin(T sine, T cosine, const BinEdges& edges,
                        const T* cotangents) {  // cotangents: [bins], 0 unused
  const bool turn = half_plane(sine, cosine) < T(0);
  if (turn) sine = -sine, cosine = -cosine;
  int64_t bin = turn ? edges.turned : 0;
  const int64_t end = turn ? edges.end[1] : edges.end[0];  // an index would put them into a GPU's memory
  for (int64_t k = turn ? edges.begin[1] : edges.begin[0]; k < end; ++k)
    bin += sine > T(0) && sine * cotangents[k] >= cosine;
  return bin;
}

// The bin as scikit-image decides it, by an angle that is rounded: `bins` for one that rounding takes to 180 degrees.
inline int64_t skimage_bin(double sine, double cosine, const HogBlocks& hog) {
  const double side = 180.0 / static_cast<double>(hog.bins);
  double degrees = std::fmod(hog.arc_tangent(sine, cosine) * (180.0 / 3.14159265358979323846), 180.0);
  if (degrees < 0) degrees += 180.0;
  int64_t bin = 0;
  while (bin < hog.bins && degrees >= side * static_cast<double>(bin + 1)) ++bin;
  return bin;
}

// The angle in [0, 90 degrees] of (larger, smaller), as if it were in [0, 45]: twice the arc tangent of half of it, whose
// tangent t = smaller / (larger + magnitude) is at most tan(pi / 8), where this polynomial is off by 3e-8.
template <typename V>
INLINE V octant_angle(V smaller, V larger, V magnitude) {
  const V t = smaller / (larger + magnitude), u = t * t;
  return t * (2.0f + u * (-0.66666615f +
                          u * (0.3999642134f + u * (-0.2847994268f + u * (0.2114544958f - u * 0.1206601709f)))));
}

// What cv::cartToPolar takes for the angle in degrees: off by up to 0.01.
constexpr float kArc1 = 57.283623f, kArc3 = -18.667446f, kArc5 = 8.9140005f, kArc7 = -2.5397246f;  // of a, a^3, ...
template <typename V>
INLINE V opencv_octant_degrees(V smaller, V larger) {
  const V a = smaller / (larger + 2.220446e-16f), u = a * a;
  return (((kArc7 * u + kArc5) * u + kArc3) * u + kArc1) * a;
}

// Its derivative by the smaller; that by the larger is -smaller / larger times as much.
template <typename V>
INLINE V opencv_octant_slope(V smaller, V larger) {
  const V a = smaller / (larger + 2.220446e-16f), u = a * a;
  return (((7 * kArc7 * u + 5 * kArc5) * u + 3 * kArc3) * u + kArc1) / (larger + 2.220446e-16f);
}

template <typename V>
INLINE V absolute(V v) {
  return v < 0 ? -v : v;
}

// From an octant to the full circle of `turn` units (2 pi, or 360).
template <typename V, typename T>
INLINE V full_circle(V octant, V sine, V cosine, T turn) {
  const V s = absolute(sine), c = absolute(cosine);
  V angle = s > c ? turn / 4 - octant : octant;
  angle = cosine < 0 ? turn / 2 - angle : angle;
  return sine < 0 ? turn - angle : angle;
}

}  // namespace maskfeat
