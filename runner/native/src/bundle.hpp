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
};

struct Trace {
  std::filesystem::path folder;
  size_t buffer_bytes;
};

struct Bundle {
  std::filesystem::path pte;
  std::optional<uint32_t> threads;
  std::optional<Trace> trace;
  std::vector<Call> calls;
};

Bundle read_bundle(const std::filesystem::path& folder); // throws std::runtime_error that names the line

} // namespace runner
