// whole images:   0 IMAGES BINS CELL_H CELL_W GAUSSIAN_WINDOW OUT
// chosen patches: 1 IMAGES BINS CELL_H CELL_W GAUSSIAN_WINDOW IDS SIDE OUT; the images are [B, T, C, H, W]
// several cells:  2 IMAGES BINS CELL_H CELL_W GAUSSIAN_WINDOW (DOWN ACROSS OUT)..., of which the first is 1 1 OUT
#include "hog/cuda/cells.h"
#include "images.h"

namespace {

using namespace maskfeat;

int call(Arguments& arguments) {
  const int64_t task = arguments.number();
  const ImageView image = images_of(arguments.tensor());
  CellPlan plan{};
  for (int64_t* parameter : {&plan.bins, &plan.cell_h, &plan.cell_w, &plan.gaussian_window})
    *parameter = arguments.number();
  if (task == 0) return hog_cells_cuda(image, plan, arguments.array(), nullptr);
  if (task == 2) {
    std::vector<Scale> scales;
    for (int64_t rows = image.height / plan.cell_h, columns = image.width / plan.cell_w; !arguments.empty();) {
      const int64_t down = arguments.number(), across = arguments.number();
      scales.push_back({arguments.array(), rows /= down, columns /= across, down, across});
    }
    int64_t planes = 1;
    for (int axis = 0; axis < image.lead; ++axis) planes *= image.lead_size[axis];
    plan.sums_only = scales.size() > 1;
    return hog_scales_cuda(image, plan, scales.data(), scales.size(), planes, nullptr);
  }
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
