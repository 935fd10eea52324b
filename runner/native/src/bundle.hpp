// A bundle as runner/protocol.py writes it: `bundle.txt`, one item a line, and arrays beside it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace runner {

struct Input {
  enum class Kind { array, output, argmax };
  Kind kind;
  std::filesystem::path file; // of an array
  size_t call = 0; // of the others
  size_t output = 0;
};

struct Part {
  size_t output;
  size_t axis;
  int64_t length;
};

struct Call {
  std::string method;
  bool keep;
  bool may_fail;
  size_t instance;
  std::vector<Input> inputs;
  std::vector<Part> parts;
  bool last_row = false; // the first output is its last row alone
};

struct Bundle {
  std::filesystem::path pte;
  std::optional<uint32_t> threads;
  size_t trace_bytes = 0; // of the event tracer's buffer; 0 without it
  std::vector<Call> calls;
};

// `pte` is where the program lies, if not where the bundle says. Throws std::runtime_error that names the line, or says that the
// program is not as long as the bundle's.
Bundle read_bundle(const std::filesystem::path& folder, const std::filesystem::path& pte);

} // namespace runner
