// What all bindings to PyTorch share: dtypes, memory, devices, the current CUDA stream, and the refusal of an id.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef MASKFEAT_CUDA
#include <dlfcn.h>
#endif

#include <atomic>
#include <initializer_list>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/image_view.h"
#include "common/simd/instruction_set.h"

#ifdef MASKFEAT_CUDA
// This is null in a torch without CUDA. Only libtorch_cuda.so has the function, and libtorch.so needs that where it
// exists.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
// A function of the CUDA runtime. It is declared here so that no header of the runtime is needed.
extern "C" const char* cudaGetErrorString(int error);
#endif

// torch's words for the last error that its C interface has caught. This is null before torch 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace maskfeat {

inline Dtype dtype_of(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Byte: return Dtype::uint8;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: STD_TORCH_CHECK(false, "the dtype must be uint8, float16, bfloat16, float32 or float64");
  }
}

// Throws what is an IndexError in Python.
[[noreturn]] inline void refuse_id(int64_t b, int64_t k, int64_t id, int64_t length) {
  std::ostringstream message;
  message << "token_ids[" << b << ", " << k << "] is " << id << ", outside 0 .. N - 1 with N = " << length;
  throw std::out_of_range(message.str());
}

// Throws what is a RuntimeError in Python. The package finds it by these words and raises what torch.empty raises
// instead.
[[noreturn]] inline void refuse_memory(const std::string& why) {
  throw std::runtime_error("maskfeat_kernels: out of memory: " + why);
}

// torch's new_empty(), which refuses memory in the words above.
inline torch::stable::Tensor new_empty(const torch::stable::Tensor& x, const std::vector<int64_t>& size,
                                       std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  try {
    return torch::stable::new_empty(x, size, dtype);
  } catch (const std::runtime_error& error) {
    const bool has_words = torch_exception_get_what_without_backtrace != nullptr;
    refuse_memory(has_words ? torch_exception_get_what_without_backtrace() : error.what());
  }
}

struct CpuDevice {
  // Chooses the instruction set here, where an exception may be thrown, and not in a thread.
  explicit CpuDevice(std::initializer_list<const torch::stable::Tensor*>) { instruction_set(); }

  // Divides 0 to count - 1 among threads, which call run(begin, end). Of exceptions only bad_alloc may leave `run`,
  // since torch turns every exception of a thread into the same error.
  template <typename Run>
  static void share(int64_t count, int64_t grain, const Run& run) {
    std::atomic<bool> fits{true};
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      try {
        run(begin, end);
      } catch (const std::bad_alloc&) {
        fits = false;
      }
    });
    if (!fits) refuse_memory("DefaultCPUAllocator: can't allocate memory: scratch of a kernel");
  }
};

#ifdef MASKFEAT_CUDA
// The stream that PyTorch uses on a device. The linker of this object may have dropped the weak function. It is then
// looked for in a libtorch_cuda.so that is already loaded. No library is ever loaded for it.
inline void* current_stream(int32_t device) {
  static const auto function = []() -> decltype(&aoti_torch_get_current_cuda_stream) {
    if (aoti_torch_get_current_cuda_stream) return aoti_torch_get_current_cuda_stream;
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<decltype(&aoti_torch_get_current_cuda_stream)>(found);
  }();
  STD_TORCH_CHECK(function,
                  "this torch has no CUDA streams: install a torch that is built for CUDA, 2.10 or newer, or take "
                  "backend='reference'");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == 0, "no current CUDA stream");
  return stream;
}

// Makes the device of the tensors the current one as long as it lives. Holds the stream that PyTorch uses there.
struct CudaDevice {
  explicit CudaDevice(std::initializer_list<const torch::stable::Tensor*> tensors)
      : guard((*tensors.begin())->get_device_index()) {
    const int32_t device = (*tensors.begin())->get_device_index();
    for (const torch::stable::Tensor* tensor : tensors)
      STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == device, "all tensors must be on one device");
    stream = current_stream(device);
  }

  static void check(int error) {
    constexpr int kNoKernelImage = 209;  // cudaErrorNoKernelImageForDevice
    STD_TORCH_CHECK(error != kNoKernelImage,
                    "this GPU has no kernel in this build, which is for the architectures " MASKFEAT_CUDA_ARCHS
                    ": build with MASKFEAT_CUDA_ARCHS=native, or take another backend");
    STD_TORCH_CHECK(error == 0, "CUDA error ", error, " at the launch of a kernel: ", cudaGetErrorString(error));
  }

  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};
#endif

}  // namespace maskfeat
