// gather:      0 TOKENS IDS OUT
// scatter add: 1 VALUES IDS LENGTH OUT
// mask tokens: 2 TOKENS MASK_TOKEN MASK OUT
// masked sum:  3 X RESULT_DTYPE OUT [MASK]
#include "driver.h"
#include "tokens/cuda.h"

namespace {

using namespace maskfeat;

TokenView tokens_of(const Tensor& x) {
  return {x.data, static_cast<Dtype>(x.dtype), x.size[0], x.size[1], x.size[2], x.stride[0], x.stride[1], x.stride[2]};
}

template <typename T>
TableView<T> table_of(const Tensor& x) {
  return {reinterpret_cast<const T*>(x.data), x.size[1], x.stride[0], x.stride[1]};
}

int call(Arguments& arguments) {
  const int64_t function = arguments.number();
  const TokenView tokens = tokens_of(arguments.tensor());
  switch (function) {
    case 0: {
      const IdView ids = table_of<int64_t>(arguments.tensor());
      return masked_gather_cuda(tokens, ids, arguments.array(), nullptr);
    }
    case 1: {
      const IdView ids = table_of<int64_t>(arguments.tensor());
      const int64_t length = arguments.number();
      return masked_scatter_add_cuda(tokens, ids, length, arguments.array(), nullptr);
    }
    case 2: {
      const Tensor mask_token = arguments.tensor();
      const MaskView mask = table_of<bool>(arguments.tensor());
      return mask_tokens_cuda(tokens, mask_token.data, mask_token.stride[0], mask, arguments.array(), nullptr);
    }
    default: {
      const Dtype result = static_cast<Dtype>(arguments.number());
      void* out = arguments.array();
      const MaskView mask = arguments.empty() ? MaskView{} : table_of<bool>(arguments.tensor());
      return masked_sum_cuda(tokens, mask, result, out, nullptr);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments(argc, argv);
  const int error = call(arguments);
  return arguments.finish(error);
}
