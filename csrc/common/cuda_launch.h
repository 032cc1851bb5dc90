// What a .cu file includes instead of cuda_runtime.h. A host compiler cannot be taught two pieces of CUDA: the launch,
// and dynamic shared memory. Both are macros here, so that the same source also runs on the host (cuda_on_host).
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

namespace maskfeat {

// How many bytes of parameters a kernel may have. CUDA 12.1 raised the limit. It needs driver 530 or newer.
constexpr size_t kMostParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

template <typename... Parameters>
constexpr size_t parameter_bytes(void (*)(Parameters...)) {
  size_t end = 0;
  ((end = (end + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return end;
}

}  // namespace maskfeat

// LAUNCH((kernel<float, 9>), grid, block, shared_bytes, stream, arguments...). The parentheses are needed where the
// name has commas.
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                              \
  do {                                                                                                      \
    static_assert(maskfeat::parameter_bytes(kernel) <= maskfeat::kMostParameterBytes, "too many for CUDA"); \
    (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__);          \
  } while (0)

// DYNAMIC_SHARED(T, name) declares T* name in a kernel. It points to the shared_bytes of the launch, aligned to 16
// bytes.
#define DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* const name = reinterpret_cast<T*>(name##_)

#else
#include "cuda_on_host.h"
#endif

#include <cstdint>
#include <limits>

#include "common/portable.h"

namespace maskfeat {

// A grid of `across` thread blocks for each of `planes`. Blocks are numbered blockIdx.x within a plane, and the plane
// is blockIdx.z * gridDim.y + blockIdx.y, which may exceed the last one. x is 0 where CUDA has no grid of this size.
inline dim3 grid_of_planes(int64_t across, int64_t planes) {
  constexpr int64_t kMaxGridY = 65535;
  const int64_t z = ceil_div(planes, kMaxGridY);
  if (across > std::numeric_limits<int32_t>::max() || z > kMaxGridY) return dim3(0);
  return dim3(static_cast<unsigned>(across), static_cast<unsigned>(ceil_div(planes, z)), static_cast<unsigned>(z));
}

}  // namespace maskfeat
