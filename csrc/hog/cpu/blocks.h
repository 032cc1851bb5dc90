// Histograms of blocks on the CPU, forward and backward, and of windows at points (points.h). This knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Computes the rows of blocks [begin, end) of all planes, counted plane by plane. `out` is [planes, plan.size()],
// float64 for float64 pixels, else float32. Each plane of `image` has one result. It may have several channels, see
// Channels.
void hog_blocks_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, int64_t begin,
                    int64_t end);

// Computes the gradients to the pixels of the planes [begin, end), grad_x [planes, channels, H, W], from those to the
// result, grad [planes, plan.size()]. Both are contiguous and of the dtype of `out` above.
void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                             void* grad_x, int64_t begin, int64_t end);

// Where windows lie: points [images or 1, count, 2], each (y, x), are added to the region of a plan. An image has
// `planes` neighbouring planes, whose results are neighbours too: [images, count, planes, plan.size()].
struct Corners {
  static constexpr int64_t kFarthest = int64_t{1} << 31;  // pixels from the region of the plan
  const int64_t* points;
  int64_t count, planes;
  bool is_shared;  // all images have the same

  const int64_t* at(int64_t plane, int64_t n) const {
    return points + 2 * ((is_shared ? 0 : plane / planes * count) + n);
  }
  int64_t place(int64_t plane, int64_t n) const { return (plane / planes * count + n) * planes + plane % planes; }
  Region window(const BlockPlan& plan, int64_t plane, int64_t n) const {
    const Region& at_zero = plan.region;
    const int64_t *point = at(plane, n), y = point[0], x = point[1];
    return {at_zero.top + y, at_zero.left + x, at_zero.height, at_zero.width, at_zero.tie_column - x};
  }
};

// The votes of all pixels of a rectangle of a plane: votes [height, 2, pitch] and bins [height, pitch], float32 and
// int32, or float64 and int64 for float64 pixels.
struct PlaneVotes {
  Region region;
  int64_t pitch;
  void *votes, *bins;
};

// Computes the rows [begin, end) of votes.
void hog_votes_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t plane,
                   const PlaneVotes& votes, int64_t begin, int64_t end);

// Computes the windows at the corners [begin, end) of a plane, from votes that hold them all, or from pixels if null.
void hog_windows_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                     int64_t plane, const PlaneVotes* votes, void* out, int64_t begin, int64_t end);

}  // namespace maskfeat
