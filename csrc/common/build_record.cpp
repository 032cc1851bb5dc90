// What this object was built with. Python reads these words (maskfeat_kernels/library.py) to tell a user why there are
// no CUDA kernels: nobody sees what a build prints.
#ifndef MASKFEAT_CUDA_ARCHS
#define MASKFEAT_CUDA_ARCHS ""
#endif
#ifndef MASKFEAT_NO_CUDA
#define MASKFEAT_NO_CUDA ""
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// The architectures of the CUDA kernels, such as "80 90". It is empty where there are none.
EXPORT const char* maskfeat_cuda_archs() { return MASKFEAT_CUDA_ARCHS; }

// Why there are no CUDA kernels. It is empty where there are some.
EXPORT const char* maskfeat_no_cuda() { return MASKFEAT_NO_CUDA; }
