// A recorded session that grows by one line for each answer (docs/sessions.md). verifier/sessions/session_file.py does the same in Python.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "npy.hpp"

namespace runner {

// One answer: what was fed, and what came back.
struct Asked {
  bool begun = false; // once the program is asked
  std::vector<int64_t> before;
  std::vector<int64_t> after;
  std::string prompt; // the text of `after`
  std::filesystem::path picture; // the file that the user chose
  int64_t prompt_tokens = 0;
  std::vector<int64_t> answer; // with the id that ended it
  std::string said; // the bytes of its pieces
  float temperature = 0;
  int64_t seq_len = 0;
};

class SessionFile {
 public:
  // Makes the file, empty, if there is none. Throws std::runtime_error for a path that cannot be written, and for a session of another
  // runtime, program or tokenizer.
  SessionFile(const std::filesystem::path& path, const std::filesystem::path& model, const std::filesystem::path& tokenizer);

  // Writes a line whole, the pixels (uint8 [3, h, w]) beside it; an `error` stands in place of an answer. Throws std::runtime_error; the
  // file is then as it was.
  void append(const Asked& asked, const Array& pixels, const std::string& error = "") const;

 private:
  void check() const;
  std::string save_pixels(const Array& pixels) const; // the name of the file
  std::string line(const Asked& asked, const std::string& pixels, const std::string& error) const;

  std::filesystem::path path_;
  std::string head_;
};

} // namespace runner
