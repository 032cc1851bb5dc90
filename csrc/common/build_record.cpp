// What this object was built with, in words: maskfeat_kernels/ops.py reads it, as nobody sees what a build prints.
#ifndef MASKFEAT_CUDA_ARCHS
#define MASKFEAT_CUDA_ARCHS ""
#endif
#ifndef MASKFEAT_NO_CUDA
#define MASKFEAT_NO_CUDA ""
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// The architectures of the CUDA kernels, "80 90"; empty if there are none.
EXPORT const char* maskfeat_cuda_archs() { return MASKFEAT_CUDA_ARCHS; }

// Why there are no CUDA kernels; empty if there are.
EXPORT const char* maskfeat_no_cuda() { return MASKFEAT_NO_CUDA; }
