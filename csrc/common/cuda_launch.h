// What a .cu file includes instead of cuda_runtime.h. The two pieces of CUDA that no host compiler can be taught, the
// launch and dynamic shared memory, are macros, so that the same source also runs on the host (tests/cuda_on_host).
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

namespace maskfeat {

// Bytes of parameters that a kernel may have. CUDA 12.1 has raised the limit, for which the driver must be 530 or newer.
constexpr size_t kMostParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

template <typename... Parameters>
constexpr size_t parameter_bytes(void (*)(Parameters...)) {
  size_t end = 0;
  ((end = (end + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return end;
}

}  // namespace maskfeat

// LAUNCH((kernel<float, 9>), grid, block, shared_bytes, stream, arguments...); parentheses where the name has commas.
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                              \
  do {                                                                                                      \
    static_assert(maskfeat::parameter_bytes(kernel) <= maskfeat::kMostParameterBytes, "too many for CUDA"); \
    (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__);          \
  } while (0)

// DYNAMIC_SHARED(float, line) in a kernel: T* line, the shared_bytes of the launch, aligned for 16-byte accesses.
#define DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* const name = reinterpret_cast<T*>(name##_)

#else
#include "cuda_on_host.h"
#endif
