// Launches the kernels of cells: cells_8x8.h where it can do what is asked for, else columns.h. Each reads the pixels
// once and writes the histograms once. For several cell sizes, scales.h follows.
#include "hog/cuda/cells.h"

#include <algorithm>
#include <type_traits>

#include "hog/cuda/cells_8x8.h"
#include "hog/cuda/columns.h"
#include "hog/cuda/scales.h"

namespace maskfeat {
namespace {

template <typename Pixel, typename T, bool PATCHES>
int launch_columns(const CellWork<T>& work, T* out, dim3 grid, void* stream) {
  if (work.plan.bins <= 9)
    LAUNCH((column_kernel<Pixel, T, 4, PATCHES>), grid, dim3(kThreads), 0, stream, work, out);
  else
    LAUNCH((column_kernel<Pixel, T, 9, PATCHES>), grid, dim3(kThreads), 0, stream, work, out);
  return static_cast<int>(cudaGetLastError());
}

template <bool PATCHES, typename Pixel, typename T>
int launch(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, void* stream) {
  CellWork<T> work = cell_work<PATCHES, T>(image, patches, plan);
  if constexpr (std::is_same_v<T, float>)
    if (has_cell_kernel<PATCHES>(work)) {
      T* const to = static_cast<T*>(out);
      if constexpr (!PATCHES)
        if (plan.sums_only) return launch_cells<Pixel, false, CellTask::sums>(work, nullptr, to, stream);
      return launch_cells<Pixel, PATCHES, CellTask::histogram>(work, nullptr, to, stream);
    }

  const int64_t fit = std::max<int64_t>(1, kThreads / plan.cell_w);  // cells of a thread block, across
  work.cells = std::min(static_cast<int32_t>(fit), work.across);
  work.strips = ceil_div(work.across, work.cells);
  work.segments = PATCHES && work.strips == 1 ? static_cast<int32_t>(fit) / work.cells : 1;
  const int64_t groups =
      PATCHES ? ceil_div<int64_t>(image.lead_size[0] * patches.count, work.segments) : ceil_div(work.rows, kStripRows);
  const dim3 grid = grid_of_planes(groups * work.strips, work.regions);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  return launch_columns<Pixel, T, PATCHES>(work, static_cast<T*>(out), grid, stream);
}

template <bool PATCHES>
int launch_for_dtype(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, void* stream) {
  switch (image.dtype) {
    case Dtype::uint8: return launch<PATCHES, uint8_t, float>(image, patches, plan, out, stream);
    case Dtype::float16: return launch<PATCHES, Float16, float>(image, patches, plan, out, stream);
    case Dtype::bfloat16: return launch<PATCHES, BFloat16, float>(image, patches, plan, out, stream);
    case Dtype::float32: return launch<PATCHES, float, float>(image, patches, plan, out, stream);
    case Dtype::float64: return launch<PATCHES, double, double>(image, patches, plan, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int hog_cells_cuda(const ImageView& image, const CellPlan& plan, void* out, void* stream) {
  return launch_for_dtype<false>(image, PatchView{}, plan, out, stream);
}

int hog_scales_cuda(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t planes,
                    void* stream) {
  int error = hog_cells_cuda(image, plan, scales[0].out, stream);
  for (int64_t i = 1; i < count && error == 0; ++i) {
    const ScaleWork work{scales[i - 1], scales[i], planes, plan.bins, 0, i + 1 == count};
    error = image.dtype == Dtype::float64 ? launch_scale<double>(work, stream) : launch_scale<float>(work, stream);
  }
  return error;
}

int hog_patches_cuda(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, void* stream) {
  return launch_for_dtype<true>(image, patches, plan, out, stream);
}

}  // namespace maskfeat
