// A libcuda.so.1 without a GPU, for Triton's own compiler and launcher: an H200 that refuses a launch which no GPU takes,
// counts the others, and runs none of them.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef int Result;
typedef void* Handle;
enum { kSuccess = 0, kInvalidValue = 1, kSharedBytes = 232448 };

static int launches = 0;
int stub_launches(void) { return launches; }

Result cuGetErrorString(Result error, const char** text) {
  *text = error ? "refused by the stub" : "no error";
  return kSuccess;
}
Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
Result cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 8: *value = 49152; break;          // shared memory of a block
    case 10: *value = 32; break;            // threads of a warp
    case 12:                                // registers of a block
    case 82: *value = 65536; break;         // registers of a multiprocessor
    case 16: *value = 132; break;           // multiprocessors
    case 81: *value = 233472; break;        // shared memory of a multiprocessor
    case 97: *value = kSharedBytes; break;  // shared memory of a block that asks for more
    default: *value = 1024;
  }
  return kSuccess;
}
Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
  (void)device;
  *context = (Handle)1;
  return kSuccess;
}
Result cuCtxSetCurrent(Handle context) {
  (void)context;
  return kSuccess;
}
Result cuCtxGetCurrent(Handle* context) {
  *context = (Handle)1;
  return kSuccess;
}
Result cuCtxSetLimit(int limit, size_t value) {
  (void)limit, (void)value;
  return kSuccess;
}
Result cuCtxGetLimit(size_t* value, int limit) {
  (void)limit;
  *value = 1 << 20;
  return kSuccess;
}
Result cuModuleLoadData(Handle* module, const void* image) {
  *module = (Handle)2;
  return image ? kSuccess : kInvalidValue;
}
Result cuModuleUnload(Handle module) {
  (void)module;
  return kSuccess;
}
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  (void)module, (void)name;
  *function = (Handle)3;
  return kSuccess;
}
Result cuFuncGetAttribute(int* value, int attribute, Handle function) {
  (void)function;
  *value = attribute == 0 ? 1024 : attribute == 4 ? 64 : 0;  // threads of a block, registers, anything else
  return kSuccess;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
  (void)function, (void)attribute, (void)value;
  return kSuccess;
}
Result cuFuncSetCacheConfig(Handle function, int preference) {
  (void)function, (void)preference;
  return kSuccess;
}
Result cuOccupancyMaxActiveClusters(int* clusters, Handle function, const void* config) {
  (void)function, (void)config;
  *clusters = 1;
  return kSuccess;
}
Result cuTensorMapEncodeTiled(void) { return kSuccess; }
Result cuPointerGetAttribute(Handle* value, int attribute, uint64_t pointer) {
  (void)attribute;
  *value = (Handle)pointer;
  return kSuccess;
}

// The beginning of a CUlaunchConfig.
struct Launch {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
};
Result cuLaunchKernelEx(const struct Launch* launch, Handle function, Handle* arguments, Handle* extra) {
  (void)function, (void)arguments, (void)extra;
  const unsigned x = launch->grid_x, y = launch->grid_y, z = launch->grid_z;
  if (!x || !y || !z || x > 0x7fffffffu || y > 65535 || z > 65535 || launch->shared_bytes > kSharedBytes) {
    fprintf(stderr, "no GPU takes a grid of %u x %u x %u with %u bytes\n", x, y, z, launch->shared_bytes);
    return kInvalidValue;
  }
  ++launches;
  return kSuccess;
}
