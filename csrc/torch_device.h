// What all registrations with PyTorch share: dtypes, devices, the current CUDA stream, and the refusal of an id.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>

#include "image_view.h"
#include "instruction_set.h"

// Null in a torch without CUDA, whose dispatcher never asks for it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

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

// An IndexError in Python.
[[noreturn]] inline void refuse_id(int64_t b, int64_t k, int64_t id, int64_t length) {
  std::ostringstream message;
  message << "token_ids[" << b << ", " << k << "] is " << id << ", outside 0 .. N - 1 with N = " << length;
  throw std::out_of_range(message.str());
}

struct CpuDevice {
  // Chooses the instructions here, where it may throw, and not among threads.
  explicit CpuDevice(std::initializer_list<const torch::stable::Tensor*>) { instruction_set(); }
};

// Makes the device of the tensors current, while it lives, and holds the stream that PyTorch uses on it.
struct CudaDevice {
  explicit CudaDevice(std::initializer_list<const torch::stable::Tensor*> tensors)
      : guard((*tensors.begin())->get_device_index()) {
    const int32_t device = (*tensors.begin())->get_device_index();
    for (const torch::stable::Tensor* tensor : tensors)
      STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == device, "all tensors must be on one device");
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "no current CUDA stream");
  }

  static void check(int error) { STD_TORCH_CHECK(error == 0, "CUDA error ", error, " at the launch of a kernel"); }

  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

}  // namespace maskfeat
