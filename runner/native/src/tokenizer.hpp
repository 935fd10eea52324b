// SentencePiece BPE from `tokenizer.bin`, as ExecuTorch's Llama runners read it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

namespace runner {

class Tokenizer {
 public:
  explicit Tokenizer(const std::filesystem::path& path); // throws std::runtime_error that names path and reason

  // Ids of a text at the start of a sequence: a blank in front, characters without a piece as bytes; no BOS.
  std::vector<int64_t> encode(const std::string& text) const;
  std::string piece(int64_t id) const; // its bytes; empty for an id outside the vocabulary

  int64_t bos = 0;
  int64_t eos = 0;

 private:
  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, int64_t> ids_;
};

} // namespace runner
