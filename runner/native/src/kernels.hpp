// Registration of the `llama` kernels, and how their rows are spread over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <executorch/runtime/core/error.h>

namespace runner {

executorch::runtime::Error register_llama_kernels();

inline uint32_t& kernel_threads() {
  static uint32_t count = std::max(1u, std::thread::hardware_concurrency());
  return count;
}

// Calls `work(first, last)` on consecutive shares of [0, rows). Every row is computed by one thread alone, so the result does
// not depend on how many there are. Small work stays on the caller's thread.
inline void parallel_rows(int64_t rows, int64_t operations, const std::function<void(int64_t, int64_t)>& work) {
  constexpr int64_t kWorthAThread = 1 << 20;
  const int64_t count = std::min<int64_t>({kernel_threads(), rows, operations / kWorthAThread + 1});
  if (count <= 1) {
    work(0, rows);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t share = 1; share < count; ++share) {
    threads.emplace_back(work, rows * share / count, rows * (share + 1) / count);
  }
  work(0, rows / count);
  for (std::thread& thread : threads) {
    thread.join();
  }
}

} // namespace runner
