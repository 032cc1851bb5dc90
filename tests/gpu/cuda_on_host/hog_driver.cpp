// whole images:   0 IMAGES BINS CELL_H CELL_W GAUSSIAN_WINDOW OUT
// chosen patches: 1 IMAGES BINS CELL_H CELL_W GAUSSIAN_WINDOW IDS SIDE OUT; the images are [B, T, C, H, W]
#include "hog/cuda/cells.h"
#include "images.h"

namespace {

using namespace maskfeat;

int call(Arguments& arguments) {
  const bool chosen = arguments.number() == 1;
  const ImageView image = images_of(arguments.tensor());
  CellPlan plan{};
  for (int64_t* parameter : {&plan.bins, &plan.cell_h, &plan.cell_w, &plan.gaussian_window})
    *parameter = arguments.number();
  if (!chosen) return hog_cells_cuda(image, plan, arguments.array(), nullptr);
  const Tensor ids = arguments.tensor();  // [B, K]
  PatchView patches{};
  patches.ids = reinterpret_cast<const int64_t*>(ids.data);
  patches.count = ids.size[1];
  patches.id_batch_stride = ids.stride[0], patches.id_stride = ids.stride[1];
  patches.side = arguments.number();
  patches.frames = image.lead_size[1];
  patches.grid_h = image.height / patches.side, patches.grid_w = image.width / patches.side;
  return hog_patches_cuda(image, patches, plan, arguments.array(), nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments(argc, argv);
  const int error = call(arguments);
  return arguments.finish(error);
}
