// Registers the moves and sums of token rows with PyTorch, for each device, through the stable ABI. Python declares the
// schemas and checks arguments with messages for users. The checks here keep a direct call of an op inside its memory.
#include <algorithm>
#include <atomic>

#include "common/torch_device.h"
#include "tokens/cpu.h"
#ifdef MASKFEAT_CUDA
#include "tokens/cuda.h"
#endif

namespace {

using maskfeat::Dtype;
using maskfeat::IdView;
using maskfeat::kChunkRows;
using maskfeat::MaskView;
using maskfeat::TokenView;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBytesPerThread = 1 << 17;  // are copied in some 10 us; another thread costs as much

TokenView view_tokens(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3, "tokens must have three axes");
  const Dtype dtype = maskfeat::dtype_of(x);
  STD_TORCH_CHECK(dtype != Dtype::uint8, "tokens must be float16, bfloat16, float32 or float64");
  return {x.data_ptr(), dtype, x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1), x.stride(2)};
}

IdView view_ids(const Tensor& ids, const TokenView& tokens) {
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(0) == tokens.batch, "token_ids must be [B, K]");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long, "token_ids must be int64");
  return {static_cast<const int64_t*>(ids.data_ptr()), ids.size(1), ids.stride(0), ids.stride(1)};
}

MaskView view_mask(const Tensor& mask, const TokenView& tokens) {
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == tokens.batch && mask.size(1) == tokens.length,
                  "mask must be [B, N]");
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "mask must be bool");
  return {static_cast<const bool*>(mask.data_ptr()), mask.size(1), mask.stride(0), mask.stride(1)};
}

int64_t rows_per_thread(const TokenView& tokens) {
  return std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, tokens.width * bytes_of(tokens.dtype)));
}

// The kernels of a device. All devices have the same names and arguments.
struct Cpu : maskfeat::CpuDevice {
  using CpuDevice::CpuDevice;

  void masked_gather(const TokenView& tokens, const IdView& ids, void* out) const {
    const int64_t rows = tokens.batch * ids.columns;
    std::atomic<int64_t> wrong{rows};  // the first item with an id out of range, whatever the number of threads
    share(rows, rows_per_thread(tokens), [&](int64_t begin, int64_t end) {
      const int64_t item = maskfeat::masked_gather_cpu(tokens, ids, out, begin, end);
      if (item == end) return;
      int64_t first = wrong.load();
      while (item < first && !wrong.compare_exchange_weak(first, item)) {
      }
    });
    if (wrong == rows) return;
    const int64_t b = wrong / ids.columns, k = wrong % ids.columns;
    maskfeat::refuse_id(b, k, ids.at(b, k), tokens.length);
  }

  void masked_scatter_add(const TokenView& values, const IdView& ids, int64_t length, void* out) const {
    share(values.batch * length, rows_per_thread(values),
          [&](int64_t begin, int64_t end) { maskfeat::masked_scatter_add_cpu(values, ids, length, out, begin, end); });
  }

  void mask_tokens(const TokenView& tokens, const Tensor& mask_token, const MaskView& mask, void* out) const {
    const void* token = mask_token.data_ptr();
    const int64_t stride = mask_token.stride(0);
    share(tokens.batch * tokens.length, rows_per_thread(tokens),
          [&](int64_t begin, int64_t end) { maskfeat::mask_tokens_cpu(tokens, token, stride, mask, out, begin, end); });
  }

  void masked_sum(const TokenView& x, const MaskView& mask, Dtype result, int64_t chunks, void* sums) const {
    const int64_t chunks_per_thread = std::max<int64_t>(1, rows_per_thread(x) / kChunkRows);
    share(chunks, chunks_per_thread,
          [&](int64_t begin, int64_t end) { maskfeat::masked_sum_cpu(x, mask, result, sums, begin, end); });
  }
};

#ifdef MASKFEAT_CUDA
struct Cuda : maskfeat::CudaDevice {
  using CudaDevice::CudaDevice;

  void masked_gather(const TokenView& tokens, const IdView& ids, void* out) const {
    check(maskfeat::masked_gather_cuda(tokens, ids, out, stream));
  }
  void masked_scatter_add(const TokenView& values, const IdView& ids, int64_t length, void* out) const {
    check(maskfeat::masked_scatter_add_cuda(values, ids, length, out, stream));
  }
  void mask_tokens(const TokenView& tokens, const Tensor& mask_token, const MaskView& mask, void* out) const {
    check(maskfeat::mask_tokens_cuda(tokens, mask_token.data_ptr(), mask_token.stride(0), mask, out, stream));
  }
  void masked_sum(const TokenView& x, const MaskView& mask, Dtype result, int64_t, void* sums) const {
    check(maskfeat::masked_sum_cuda(x, mask, result, sums, stream));
  }
};
#endif

template <typename Device>
Tensor masked_gather(const Tensor& tokens, const Tensor& token_ids) {
  const Device device{&tokens, &token_ids};
  const TokenView view = view_tokens(tokens);
  const IdView ids = view_ids(token_ids, view);
  Tensor out = maskfeat::new_empty(tokens, {view.batch, ids.columns, view.width});
  if (view.batch * ids.columns > 0) device.masked_gather(view, ids, out.data_ptr());
  return out;
}

template <typename Device>
Tensor masked_scatter_add(const Tensor& values, const Tensor& token_ids, int64_t length) {
  const Device device{&values, &token_ids};
  const TokenView view = view_tokens(values);
  const IdView ids = view_ids(token_ids, view);
  STD_TORCH_CHECK(ids.columns == view.length, "token_ids must be [B, K]");
  STD_TORCH_CHECK(length >= 0, "length must not be negative");
  Tensor out = maskfeat::new_empty(values, {view.batch, length, view.width});
  if (out.numel() > 0) device.masked_scatter_add(view, ids, length, out.data_ptr());
  return out;
}

template <typename Device>
Tensor mask_tokens(const Tensor& tokens, const Tensor& mask_token, const Tensor& mask) {
  const Device device{&tokens, &mask_token, &mask};
  const TokenView view = view_tokens(tokens);
  const MaskView mask_view = view_mask(mask, view);
  STD_TORCH_CHECK(mask_token.dim() == 1 && mask_token.size(0) == view.width, "mask_token must be [D]");
  STD_TORCH_CHECK(mask_token.scalar_type() == tokens.scalar_type(), "mask_token must be of the dtype of tokens");
  Tensor out = maskfeat::new_empty(tokens, {view.batch, view.length, view.width});
  if (out.numel() > 0) device.mask_tokens(view, mask_token, mask_view, out.data_ptr());
  return out;
}

template <typename Device>
Tensor masked_sum(const Tensor& x, const Tensor& mask) {
  const Device device{&x, &mask};
  TokenView view = view_tokens(x);
  MaskView mask_view = view_mask(mask, view);
  const Dtype result = view.dtype;
  const bool is_double = result == Dtype::float64;
  Tensor sums;  // the sums of one level, which the next level reads
  for (int64_t rows = view.batch * view.length;;) {
    const int64_t chunks = std::max<int64_t>(1, maskfeat::ceil_div(rows, kChunkRows));
    const bool last = chunks == 1;
    const ScalarType wide = is_double ? ScalarType::Double : ScalarType::Float;
    Tensor out = last ? maskfeat::new_empty(x, {view.width}) : maskfeat::new_empty(x, {chunks, view.width}, wide);
    if (view.width > 0) device.masked_sum(view, mask_view, result, chunks, out.data_ptr());
    if (last) return out;
    view = {out.data_ptr(), is_double ? Dtype::float64 : Dtype::float32, 1, chunks, view.width, 0, view.width, 1};
    mask_view.data = nullptr;
    sums = out;
    rows = chunks;
  }
}

template <typename Device, typename Library>
void register_all(Library& m) {
  m.impl("masked_gather", TORCH_BOX(&masked_gather<Device>));
  m.impl("masked_scatter_add", TORCH_BOX(&masked_scatter_add<Device>));
  m.impl("mask_tokens", TORCH_BOX(&mask_tokens<Device>));
  m.impl("masked_sum", TORCH_BOX(&masked_sum<Device>));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CPU, m) { register_all<Cpu>(m); }
#ifdef MASKFEAT_CUDA
STABLE_TORCH_LIBRARY_IMPL(maskfeat_kernels, CUDA, m) { register_all<Cuda>(m); }
#endif
