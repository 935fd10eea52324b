// Text to ids and back, from tokenizer.bin, tokenizer.model or tokenizer.json; runner/tokenizer.py has the same and says how they differ.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_set>
#include <vector>

#include "vocabulary.hpp"

namespace runner {

class Tokenizer {
 public:
  explicit Tokenizer(const std::filesystem::path& path); // throws std::runtime_error that says what the file is instead

  // Ids of a text at the start of a sequence, without BOS; a literal `<s>` in it is text.
  std::vector<int64_t> encode(const std::string& text) const { return encode(text, true); }
  // Ids of a text behind an image, as the file says; where it has no rule (.bin, .model) a new text begins, as in ExecuTorch's runners.
  std::vector<int64_t> encode_behind(const std::string& text) const { return encode(text, false); }
  std::string piece(int64_t id) const; // its bytes; empty for special tokens and for ids that are not in the file
  int64_t bos() const { return vocabulary_.bos; }
  const std::vector<int64_t>& eos() const { return vocabulary_.eos; } // ids that end an answer

 private:
  std::vector<int64_t> encode(const std::string& text, bool first) const;
  void append_words(std::vector<int64_t>& ids, const std::string& stretch, bool first) const;
  void append_word(std::vector<int64_t>& ids, const std::string& word) const;

  Vocabulary vocabulary_;
};

// Ids of every text of a JSON file ["…", …], as JSON to stdout: at the start of a sequence, and behind an image. Throws std::runtime_error.
void print_ids(const std::filesystem::path& tokenizer, const std::filesystem::path& texts);

} // namespace runner
