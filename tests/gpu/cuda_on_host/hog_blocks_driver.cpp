// blocks:         0 IMAGES NUMBERS REALS REGION OUT
// their gradient: 1 IMAGES NUMBERS REALS REGION GRAD SCRATCH GRAD_X
// refusal:        2 IMAGES NUMBERS REALS REGION; prints why, and ends with 1
// The images are [..., H, W], or [..., C, H, W] where the strongest of several channels is taken.
#include "hog/cuda/blocks.h"
#include "images.h"

namespace {

using namespace maskfeat;

// What is read on the host, whatever the device.
template <typename T>
std::vector<T> list_of(const Tensor& x) {
  std::vector<T> list(x.size[0]);
#ifdef __CUDACC__
  cudaMemcpy(list.data(), x.data, list.size() * sizeof(T), cudaMemcpyDefault);
#else
  memcpy(list.data(), x.data, list.size() * sizeof(T));
#endif
  return list;
}

int call(Arguments& arguments) {
  const int64_t function = arguments.number();
  const Tensor x = arguments.tensor();
  const auto numbers = list_of<int64_t>(arguments.tensor());
  const auto reals = list_of<double>(arguments.tensor());
  const auto region = list_of<int64_t>(arguments.tensor());
  const BlockPlan plan = read_block_plan(numbers.data(), numbers.size(), reals.data(), reals.size(), region.data());
  const bool inner = plan.strongest && x.size.size() > 2;
  const ImageView image = images_of(x, inner);
  const Channels channels = inner ? Channels{x.size[x.size.size() - 3], x.stride[x.size.size() - 3]} : Channels{1, 0};
  if (const char* const reason = hog_blocks_cuda_refuses(plan)) {
    fprintf(stderr, "%s\n", reason);
    return 1;
  }
  if (function == 0) return hog_blocks_cuda(image, channels, plan, arguments.array(), nullptr);
  if (function == 2) return 0;
  const char* const grad = arguments.tensor().data;
  char* const scratch = arguments.array();
  return hog_blocks_backward_cuda(image, channels, plan, grad, scratch, arguments.array(), nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments(argc, argv);
  const int error = call(arguments);
  return arguments.finish(error);
}
