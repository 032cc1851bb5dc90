// Histograms of cells on the CPU. This knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Computes the rows of cells [begin, end) of all planes, counted plane by plane. `out` is [planes, bins, H / cell_h,
// W / cell_w], float64 for float64 pixels, else float32.
void hog_cells_cpu(const ImageView& image, const CellPlan& plan, void* out, int64_t begin, int64_t end);

// Computes the patches [begin, end) of the B * K that ids choose. `patches` must hold all ids. `out` is [B, K, C, bins,
// side / cell_h, side / cell_w], of the dtype above.
void hog_patches_cpu(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, int64_t begin,
                     int64_t end);

// Computes the bands [begin, end) of all planes at several cell sizes, counted plane by plane. A band has band_rows()
// rows of the finest cells, whose size is that of the plan, and the last of a plane may have fewer. Of several sizes, the
// plan leaves sums.
void hog_scales_cpu(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t begin,
                    int64_t end);

}  // namespace maskfeat
