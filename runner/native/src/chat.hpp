// One question about one image, answered token by token.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace runner {

struct Question {
  std::filesystem::path model;
  std::filesystem::path tokenizer;
  std::filesystem::path image;
  std::filesystem::path save_image; // where the picture goes as the program would be given it, instead of asking; "" to ask
  std::filesystem::path record; // the session that gets a line for the answer; "" for none
  std::string prompt; // the text behind the image
  int64_t seq_len = 768; // positions to use at most
  float temperature = 0;
  uint32_t seed = 0;
  std::string load_mode = "mmap"; // or file
};

// Prints prompt and answer as they come, and seconds of prefill and tokens per second of decode to stderr. Exit status: 0, or 1 if
// the program fails. Throws std::runtime_error for inputs that cannot be read.
int answer(const Question& question);

} // namespace runner
