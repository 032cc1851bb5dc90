// HOG of windows at points on the CPU, plane by plane. This knows neither Python nor torch.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "hog/cpu/blocks.h"

namespace maskfeat {

// The rectangle that holds all windows of a plane.
inline Region around_windows(const BlockPlan& plan, const Corners& corners, int64_t plane) {
  Region around = corners.window(plan, plane, 0);
  int64_t bottom = around.top, right = around.left;
  for (int64_t n = 1; n < corners.count; ++n) {
    const Region window = corners.window(plan, plane, n);
    around.top = std::min(around.top, window.top), bottom = std::max(bottom, window.top);
    around.left = std::min(around.left, window.left), right = std::max(right, window.left);
  }
  around.tie_column = plan.region.tie_column + plan.region.left - around.left;
  around.height = bottom - around.top + plan.region.height, around.width = right - around.left + plan.region.width;
  return around;
}

// Throws std::out_of_range for a point that is too far away. `images` is the number of rows of points.
inline void check_corners(const Corners& corners, int64_t images) {
  for (int64_t i = 0; i < 2 * corners.count * images; ++i)
    if (corners.points[i] <= -Corners::kFarthest || corners.points[i] >= Corners::kFarthest)
      throw std::out_of_range("a point must lie within 2^31 pixels of the image, got " +
                              std::to_string(corners.points[i]));
}

// All windows of one plane. share(count, pixels, run) divides 0 to count - 1 among threads, which call run(begin, end).
// An item has so many pixels.
template <typename T, typename Share>
void windows_of_a_plane(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                        int64_t plane, void* out, const Share& share) {
  const Region around = around_windows(plan, corners, plane);
  const int64_t pixels = plan.region.height * plan.region.width;
  // A product of floats, as the windows may lie far apart.
  const bool overlaps = 1.0 * around.height * around.width <= 1.0 * pixels * corners.count;
  PlaneVotes votes{around, 0, nullptr, nullptr};
  std::unique_ptr<T[]> memory;
  if (overlaps) {
    votes.pitch = (around.width + 31) / 32 * 32 + 32;  // room for whole vectors
    const int64_t size = around.height * votes.pitch;
    memory.reset(new T[3 * size]);
    votes.votes = memory.get(), votes.bins = memory.get() + 2 * size;
    share(around.height, around.width * channels.count,
          [&](int64_t begin, int64_t end) { hog_votes_cpu(image, channels, plan, plane, votes, begin, end); });
  }
  share(corners.count, pixels, [&](int64_t begin, int64_t end) {
    hog_windows_cpu(image, channels, plan, corners, plane, overlaps ? &votes : nullptr, out, begin, end);
  });
}

// All windows of all planes, into `out`, see Corners. Threads share the planes, or the work of a single one.
template <typename Share>
void hog_points_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                    int64_t planes, void* out, const Share& share) {
  const auto alone = [](int64_t count, int64_t, const auto& run) { run(0, count); };
  const auto do_plane = [&](int64_t plane, const auto& among) {
    image.dtype == Dtype::float64 ? windows_of_a_plane<double>(image, channels, plan, corners, plane, out, among)
                                  : windows_of_a_plane<float>(image, channels, plan, corners, plane, out, among);
  };
  if (planes == 1) return do_plane(0, share);
  share(planes, corners.count * plan.region.height * plan.region.width, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) do_plane(plane, alone);
  });
}

}  // namespace maskfeat
