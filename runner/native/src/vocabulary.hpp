// The three tokenizer files, told apart by what is in them and read within bounds; runner/tokenizer_files.py has the same.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace runner {

// What happens to a text before it is merged: `steps` one after the other, (old, new) replaced, ("", new) put in front; then, if there is a
// `scheme`, blanks become `blank`, with one in front "always", "first" at the start of a sequence only, or "never", unless the text begins
// with one; a `split` text is cut before every blank.
struct Spelling {
  std::string blank;
  std::vector<std::pair<std::string, std::string>> steps;
  std::string scheme;
  bool split = false;

  std::vector<std::string> words(std::string text, bool first) const;
};

struct Vocabulary {
  std::unordered_map<std::string, int64_t> ids; // of the pieces that text can become
  std::unordered_map<int64_t, std::string> spoken; // the bytes that an id stands for
  std::vector<float> scores; // by id, of tokenizer.bin and .model
  std::unordered_map<std::string, double> ranks; // of merges in tokenizer.json, by both pieces with 0xFF between
  bool by_rank = false;
  Spelling spelling;
  int64_t bos = 0;
  std::vector<int64_t> eos;
  std::array<int64_t, 256> bytes_ids; // -1 where there is none
  int64_t unknown = -1;
  bool fuse_unknown = true;
  bool whole_words = false;
  std::vector<std::string> user_defined; // never merged, the longest first
  std::vector<std::pair<std::string, int64_t>> added; // text is cut at them before anything else, the longest first

  Vocabulary() { bytes_ids.fill(-1); }
  // Of the merge of two neighbours, the lowest first; none if they stay apart.
  std::optional<double> rank(const std::string& left, const std::string& right) const;
};

extern const char* const kBlank; // U+2581

Vocabulary read_vocabulary(const std::filesystem::path& path); // throws std::runtime_error that says what the file is instead
Vocabulary parse_json(const std::string& data); // a tokenizer.json; throws std::runtime_error
std::string describe(const std::string& data); // what a file is, from its beginning
std::optional<int> byte_of(const std::string& piece); // of a piece such as `<0x0A>`
std::string said(const std::string& piece, const std::string& blank); // the bytes that a piece stands for
std::string replaced(std::string text, const std::string& old, const std::string& with);

} // namespace runner
