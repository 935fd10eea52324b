// A program on ExecuTorch's runtime: loading, calls, outputs as arrays.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>

#include "bundle.hpp"
#include "npy.hpp"

namespace runner {

// A tensor that a method declares: dtype in NumPy's spelling, "" for what is no plain number; sizes, their upper bounds if they are dynamic.
struct TensorFacts {
  std::string dtype;
  std::vector<int64_t> sizes;
};

// What a call of the runtime says went wrong, in the words of ExecuTorch's Python bindings.
struct CallError {
  std::string what;
};

class Program {
 public:
  using LoadMode = executorch::extension::Module::LoadMode;
  Program(const std::filesystem::path& pte, size_t debug_buffer_bytes, LoadMode mode = LoadMode::Mmap);
  // Outputs alias the program's memory until its next call. Throws CallError.
  std::vector<executorch::runtime::EValue> call(const std::string& method, const std::vector<Array>& inputs);
  bool has(const std::string& method) const; // whether the program has a method of this name
  std::vector<TensorFacts> inputs(const std::string& method) const; // what it declares; throws CallError
  void write_trace(const std::filesystem::path& folder); // throws std::runtime_error
  executorch::runtime::Error loaded = executorch::runtime::Error::Ok;

 private:
  std::vector<uint8_t> debug_buffer_;
  executorch::etdump::ETDumpGen* tracer_ = nullptr; // owned by the module
  std::unique_ptr<executorch::extension::Module> module_;
};

Array to_array(const executorch::runtime::EValue& value); // throws CallError for what is no tensor of plain numbers
Array first_rows(const Array& array, const Part& part); // the first `length` entries along an axis
Array last_row(const Array& array); // [..., N] -> [1, N]
int64_t argmax(const Array& logits); // index of the largest number in the last row, fp32
void set_threads(uint32_t count);
void set_workspace_sharing(const std::string& mode); // of XNNPACK's delegates, before a program is loaded; throws std::runtime_error
// `mmap`, the file's pages as they are touched, or `file`, constants copied into memory. Throws std::runtime_error.
Program::LoadMode load_mode(const std::string& name);
std::string error_text(executorch::runtime::Error error); // 0x12

} // namespace runner
