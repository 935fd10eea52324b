// The two operators of ExecuTorch's `llama` library that LLaVA needs. The wheel has them only in a library that needs torch.
//
// Semantics: extension/llm/custom_ops/op_update_cache.cpp and op_sdpa.cpp of ExecuTorch 1.5. tests/native holds these against
// the wheel's own, over lengths, positions and grouped heads.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <executorch/runtime/core/event_tracer_hooks.h>
#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "kernels.hpp"

namespace runner {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;

constexpr int64_t kBlock = 64; // keys summed before they are added up: the error of a sum grows with its longest chain
constexpr int64_t kLanes = 16;

// What the wrappers that ExecuTorch generates for its own kernels do: the tracer sees the result.
void log_result(KernelRuntimeContext& context, Span<EValue*> stack) {
  executorch::runtime::internal::event_tracer_log_evalue(context.internal_event_tracer(), *stack[stack.size() - 1]);
}

bool is_cache_like(const Tensor& tensor) {
  return tensor.dim() == 4 && tensor.size(0) == 1 && tensor.scalar_type() == ScalarType::Float;
}

// update_cache.out(value [1, S, H, D], cache [1, T, H, D], start_pos, *, out): rows [start, start + S) of the cache.
void update_cache(KernelRuntimeContext& context, Span<EValue*> stack) {
  const Tensor value = stack[0]->toTensor();
  Tensor cache = stack[1]->toTensor();
  const int64_t start = stack[2]->toInt();
  const bool fits = is_cache_like(value) && is_cache_like(cache) && value.size(2) == cache.size(2) &&
      value.size(3) == cache.size(3) && start >= 0 && start + value.size(1) <= cache.size(1);
  if (!fits) {
    context.fail(Error::InvalidArgument);
    return;
  }
  const size_t row_bytes = static_cast<size_t>(cache.size(2) * cache.size(3)) * sizeof(float);
  auto* bytes = static_cast<uint8_t*>(cache.mutable_data_ptr());
  std::memcpy(bytes + static_cast<size_t>(start) * row_bytes, value.const_data_ptr(), value.nbytes());
  log_result(context, stack);
}

float dot(const float* a, const float* b, int64_t size) {
  float lanes[kLanes] = {};
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += a[at + lane] * b[at + lane];
    }
  }
  for (int64_t lane = 0; at < size; ++at, ++lane) {
    lanes[lane] += a[at] * b[at];
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) {
      lanes[lane] += lanes[lane + width];
    }
  }
  return lanes[0];
}

struct Attention {
  const float* query; // [S, H, D]
  const float* keys; // [T, G, D]
  const float* values; // [T, G, D]
  float* out; // [S, H, D]
  int64_t heads, groups, width, start, tokens;
  float scale;
  bool causal;

  // One query of one head: softmax(q k / sqrt(D)) v over the keys that it may see.
  void row(int64_t token, int64_t head, std::vector<float>& weights, std::vector<float>& sum) const {
    const int64_t seen = causal ? start + token + 1 : start + tokens;
    const int64_t group = head / (heads / groups);
    const float* q = query + (token * heads + head) * width;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t key = 0; key < seen; ++key) {
      weights[key] = scale * dot(q, keys + (key * groups + group) * width, width);
      largest = std::max(largest, weights[key]);
    }
    double total = 0;
    for (int64_t key = 0; key < seen; ++key) {
      weights[key] = std::exp(weights[key] - largest);
      total += weights[key];
    }
    float* to = out + (token * heads + head) * width;
    std::fill(to, to + width, 0.0f);
    for (int64_t begin = 0; begin < seen; begin += kBlock) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t key = begin; key < std::min(seen, begin + kBlock); ++key) {
        const float* v = values + (key * groups + group) * width;
        for (int64_t d = 0; d < width; ++d) {
          sum[d] += weights[key] * v[d];
        }
      }
      for (int64_t d = 0; d < width; ++d) {
        to[d] += sum[d];
      }
    }
    const auto inverse = static_cast<float>(1.0 / total);
    for (int64_t d = 0; d < width; ++d) {
      to[d] *= inverse;
    }
  }
};

// custom_sdpa.out(query [1, S, H, D], key and value caches [1, T, G, D], start_pos, attn_mask, dropout_p, is_causal, scale, *,
// out): query i sees keys [0, start + i], or all [0, start + S) if it is not causal.
void custom_sdpa(KernelRuntimeContext& context, Span<EValue*> stack) {
  const Tensor query = stack[0]->toTensor();
  const Tensor keys = stack[1]->toTensor();
  const Tensor values = stack[2]->toTensor();
  const int64_t start = stack[3]->toInt();
  Tensor out = stack[8]->toTensor();
  const bool fits = is_cache_like(query) && is_cache_like(keys) && is_cache_like(values) && stack[4]->isNone() &&
      keys.size(1) == values.size(1) && keys.size(2) == values.size(2) && keys.size(3) == query.size(3) &&
      values.size(3) == query.size(3) && keys.size(2) > 0 && query.size(2) % keys.size(2) == 0 && start >= 0 &&
      start + query.size(1) <= keys.size(1) && (stack[5]->isNone() || stack[5]->toDouble() == 0.0);
  if (!fits || executorch::runtime::resize_tensor(out, query.sizes()) != Error::Ok) {
    context.fail(Error::InvalidArgument);
    return;
  }
  Attention made{};
  made.query = query.const_data_ptr<float>();
  made.keys = keys.const_data_ptr<float>();
  made.values = values.const_data_ptr<float>();
  made.out = out.mutable_data_ptr<float>();
  made.tokens = query.size(1);
  made.heads = query.size(2);
  made.width = query.size(3);
  made.groups = keys.size(2);
  made.start = start;
  made.causal = stack[6]->toBool();
  made.scale = stack[7]->isNone() ? 1.0f / std::sqrt(static_cast<float>(made.width)) : static_cast<float>(stack[7]->toDouble());
  const int64_t rows = made.tokens * made.heads;
  parallel_rows(rows, rows * (start + made.tokens) * made.width, [&made](int64_t first, int64_t last) {
    std::vector<float> weights(static_cast<size_t>(made.start + made.tokens));
    std::vector<float> sum(static_cast<size_t>(made.width));
    for (int64_t row = first; row < last; ++row) {
      made.row(row / made.heads, row % made.heads, weights, sum);
    }
  });
  log_result(context, stack);
}

} // namespace

Error register_llama_kernels() {
  static const executorch::runtime::Kernel kernels[] = {
      executorch::runtime::Kernel("llama::update_cache.out", update_cache),
      executorch::runtime::Kernel("llama::custom_sdpa.out", custom_sdpa),
  };
  return executorch::runtime::register_kernels({kernels, 2});
}

} // namespace runner
