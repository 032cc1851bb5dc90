// What a .cu file includes instead of cuda_runtime.h. The two pieces of CUDA that no host compiler can be taught, the
// launch and dynamic shared memory, are macros, so that the same source also runs on the host (tests/cuda_on_host).
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

// LAUNCH((kernel<float, 9>), grid, block, shared_bytes, stream, arguments...); parentheses where the name has commas.
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

// DYNAMIC_SHARED(float, line) in a kernel: T* line, the shared_bytes of the launch, aligned for 16-byte accesses.
#define DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* const name = reinterpret_cast<T*>(name##_)

#else
#include "cuda_on_host.h"
#endif
