// The groups of OpenCV's hits. Mean shift takes OpenCV's order of operations, since a hit on a whole pixel is cut to an
// integer, and the last bit decides which one.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "opencv/detector.h"

namespace maskfeat {
namespace {

constexpr double kWidth = 8, kHeight = 16;  // pixels of mean shift's kernel at scale 1
const double kLogScale = std::log(1.3);
constexpr double kStop = 1e-5;
constexpr int kSteps = 100;
constexpr double kVanishes = -746;  // exp() of less is 0

// The first of the rectangles that are known to be connected with rectangle i.
int64_t first_of(std::vector<int64_t>& before, int64_t i) {
  while (before[i] != i) i = before[i] = before[before[i]];
  return i;
}

// What a step needs of a hit: the size of its kernel, and its place in units of that size.
struct Kernel {
  double x, y, log_scale;     // size of the kernel
  double at_x, at_y, at_log;  // place
  double root;
};

Kernel kernel_of(const Hit& hit) {
  Kernel k;
  k.x = kWidth * std::exp(hit.log_scale), k.y = kHeight * std::exp(hit.log_scale), k.log_scale = kLogScale;
  k.at_x = hit.x / k.x, k.at_y = hit.y / k.y, k.at_log = hit.log_scale / k.log_scale;
  k.root = std::sqrt(k.x + k.y + k.log_scale);
  return k;
}

double distance(const Hit& from, const Hit& to) {
  const double scale = std::exp(to.log_scale);
  const double x = (to.x - from.x) / (kWidth * scale), y = (to.y - from.y) / (kHeight * scale);
  const double z = (to.log_scale - from.log_scale) / kLogScale;
  return x * x + y * y + z * z;
}

Hit step(const std::vector<Kernel>& kernels, const double* weights, const Hit& at) {
  constexpr int64_t kAtOnce = 64;
  Hit sum{0, 0, 0}, share{0, 0, 0};
  const int64_t count = kernels.size();
  for (int64_t first = 0; first < count; first += kAtOnce) {
    double exponent[kAtOnce];
    const int64_t some = std::min(kAtOnce, count - first);
    for (int64_t i = 0; i < some; ++i) {
      const Kernel& k = kernels[first + i];
      const double x = k.at_x - at.x / k.x, y = k.at_y - at.y / k.y, z = k.at_log - at.log_scale / k.log_scale;
      exponent[i] = -(x * x + y * y + z * z) / 2;
    }
    for (int64_t i = 0; i < some; ++i) {
      if (exponent[i] < kVanishes) continue;  // it would add 0
      const Kernel& k = kernels[first + i];
      const double w = weights[first + i] * std::exp(exponent[i]) / k.root;
      sum.x += w * k.at_x, sum.y += w * k.at_y, sum.log_scale += w * k.at_log;
      share.x += w / k.x, share.y += w / k.y, share.log_scale += w / k.log_scale;
    }
  }
  return {sum.x / share.x, sum.y / share.y, sum.log_scale / share.log_scale};
}

}  // namespace

// Sweeps along x, and compares rectangles that are near enough along x. The first of connected rectangles is the root.
void similar_classes(const int64_t* rectangles, int64_t count, double eps, int64_t* classes) {
  std::vector<int64_t> order(count), before(count);
  std::iota(order.begin(), order.end(), 0);
  std::iota(before.begin(), before.end(), 0);
  std::sort(order.begin(), order.end(), [=](int64_t a, int64_t b) { return rectangles[4 * a] < rectangles[4 * b]; });
  for (int64_t n = 0; n < count; ++n) {
    const int64_t* const a = rectangles + 4 * order[n];
    const double reach = eps * static_cast<double>(a[2] + a[3]) * 0.5;
    for (int64_t m = n + 1; m < count; ++m) {
      const int64_t* const b = rectangles + 4 * order[m];
      if (static_cast<double>(b[0] - a[0]) > reach) break;
      const double delta = eps * static_cast<double>(std::min(a[2], b[2]) + std::min(a[3], b[3])) * 0.5;
      const auto is_near = [delta](int64_t p, int64_t q) { return static_cast<double>(std::abs(p - q)) <= delta; };
      if (!(is_near(a[0], b[0]) && is_near(a[1], b[1]) && is_near(a[0] + a[2], b[0] + b[2]) &&
            is_near(a[1] + a[3], b[1] + b[3])))
        continue;
      const int64_t first = first_of(before, order[n]), second = first_of(before, order[m]);
      before[std::max(first, second)] = std::min(first, second);
    }
  }
  int64_t known = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = first_of(before, i);
    classes[i] = first == i ? known++ : classes[first];
  }
}

void climb_to_modes(const Hit* hits, const double* weights, int64_t count, int64_t begin, int64_t end, Hit* modes) {
  std::vector<Kernel> kernels(count);
  std::transform(hits, hits + count, kernels.begin(), kernel_of);
  for (int64_t i = begin; i < end; ++i) {
    Hit at = step(kernels, weights, hits[i]);
    for (int n = 0; n < kSteps; ++n) {
      const Hit before = at;
      at = step(kernels, weights, before);
      // From a NaN there is no way back.
      if (distance(at, before) <= kStop || std::isnan(at.x + at.y + at.log_scale)) break;
    }
    modes[i - begin] = at;
  }
}

void distinct_modes(const Hit* hits, const double* weights, int64_t count, const Hit* climbed, std::vector<Hit>& modes,
                    std::vector<double>& densities) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(climbed[i].x + climbed[i].y + climbed[i].log_scale)) continue;  // no density exceeds a threshold
    const auto is_same = [&](const Hit& mode) { return distance(climbed[i], mode) < 1; };
    if (std::none_of(modes.begin(), modes.end(), is_same)) modes.push_back(climbed[i]);
  }
  for (const Hit& mode : modes) {
    double density = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double scale = std::exp(hits[i].log_scale), width = kWidth * scale, height = kHeight * scale;
      const double x = (hits[i].x - mode.x) / width, y = (hits[i].y - mode.y) / height;
      const double z = (hits[i].log_scale - mode.log_scale) / kLogScale;
      density += weights[i] * std::exp(-(x * x + y * y + z * z) / 2) / std::sqrt(width + height + kLogScale);
    }
    densities.push_back(density);
  }
}

}  // namespace maskfeat
