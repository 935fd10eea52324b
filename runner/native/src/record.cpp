#include "record.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

#include "constants.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace runner {
namespace {

namespace fs = std::filesystem;

std::runtime_error refused(const fs::path& path, const std::string& what, const std::string& got, const std::string& expected) {
  return std::runtime_error(
      what + "\n  got: " + got + "\n  expected: " + expected + "\n  where: " + path.string() + "\n  to fix: give --record another path");
}

std::runtime_error unwritable(const fs::path& path, const std::string& reason) {
  return refused(path, "the session cannot be written", reason, "a path in an existing folder that can be written");
}

// A file that is closed however its user is left.
struct Opened {
  Opened(const fs::path& path, int flags) : number(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (number < 0) {
      throw unwritable(path, std::strerror(errno));
    }
  }
  ~Opened() { ::close(number); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  int number;
};

std::string existing(const fs::path& path, const char* what) {
  if (!fs::is_regular_file(path)) {
    throw std::runtime_error(std::string("no such ") + what + ": " + path.string());
  }
  return sha256_of(path);
}

std::string head_of(const fs::path& model, const fs::path& tokenizer) {
  utsname machine{};
  ::uname(&machine);
  return "{\"schema\": " + quoted(kSessionSchema) + ", \"runtime\": " + quoted(std::string("llava_main in C++ 2, executorch ") + EXECUTORCH_VERSION) +
      ", \"device\": " + quoted(std::string(machine.sysname) + " " + machine.machine) + ", \"program_sha256\": " + quoted(existing(model, "program")) +
      ", \"tokenizer_sha256\": " + quoted(existing(tokenizer, "tokenizer")) + "}\n";
}

fs::path folder_of(const fs::path& path) {
  return fs::absolute(path).lexically_normal().parent_path();
}

std::string listed(const std::vector<int64_t>& ids) {
  std::string text;
  for (const int64_t id : ids) {
    text += (text.empty() ? "" : ", ") + std::to_string(id);
  }
  return "[" + text + "]";
}

std::string stripped(const std::string& text) {
  constexpr const char* kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

} // namespace

SessionFile::SessionFile(const fs::path& path, const fs::path& model, const fs::path& tokenizer) : path_(path) {
  if (fs::exists(path) && !fs::is_regular_file(path)) {
    throw unwritable(path, "no plain file");
  }
  const Opened file(path, O_RDWR | O_CREAT | O_APPEND); // before the program is hashed, which may take a while
  if (::access(folder_of(path).c_str(), W_OK) != 0) {
    throw unwritable(folder_of(path), "no right to write beside the session, where pixels go");
  }
  head_ = head_of(model, tokenizer);
  check();
}

void SessionFile::check() const {
  std::ifstream file(path_, std::ios::binary);
  std::string first;
  if (!std::getline(file, first)) {
    return;
  }
  if (first + "\n" != head_) {
    throw refused(path_, "the session is of another runtime, program or tokenizer", first.substr(0, 400), head_.substr(0, head_.size() - 1));
  }
  char last = '\n';
  file.clear();
  if (file.seekg(-1, std::ios::end).get(last) && last != '\n') {
    throw refused(path_, "the session ends in the middle of a line", "no line break at its end", "whole lines");
  }
}

void SessionFile::append(const Asked& asked, const Array& pixels, const std::string& error) const {
  const std::string added = line(asked, save_pixels(pixels), error);
  const Opened file(path_, O_RDWR | O_CREAT | O_APPEND);
  ::flock(file.number, LOCK_EX);
  struct stat facts {};
  ::fstat(file.number, &facts);
  const std::string text = (facts.st_size == 0 ? head_ : "") + added;
  const ssize_t written = ::write(file.number, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    const std::string reason = written < 0 ? std::strerror(errno) : "the disk is full";
    if (::ftruncate(file.number, facts.st_size) != 0) {
      throw unwritable(path_, reason + ", and what was written cannot be removed");
    }
    throw unwritable(path_, reason);
  }
}

std::string SessionFile::save_pixels(const Array& pixels) const {
  Sha256 sum;
  sum.add(pixels.bytes.data(), pixels.bytes.size());
  const fs::path path = path_.parent_path() / (path_.stem().string() + "-" + sum.hex().substr(0, 16) + ".npy");
  if (!fs::exists(path)) {
    const fs::path temporary = path.string() + "." + std::to_string(::getpid());
    try {
      write_npy(pixels, temporary);
      fs::rename(temporary, path);
    } catch (const std::exception&) {
      std::error_code ignored;
      fs::remove(temporary.string() + ".tmp", ignored);
      fs::remove(temporary, ignored);
      throw unwritable(path, "the pixels cannot be written: is the disk full?");
    }
  }
  return path.filename().string();
}

std::string SessionFile::line(const Asked& asked, const std::string& pixels, const std::string& error) const {
  std::string picture = "{\"pixels\": " + quoted(pixels);
  if (asked.picture.extension() != ".npy" && asked.picture.extension() != ".pt") {
    const fs::path chosen = fs::absolute(asked.picture).lexically_normal();
    picture += ", \"picture\": " + quoted(chosen.lexically_relative(folder_of(path_)).string());
  }
  char temperature[32];
  std::snprintf(temperature, sizeof temperature, "%.6g", static_cast<double>(asked.temperature));
  std::string text = "{\"reset\": true, \"inputs\": [{\"text\": " + quoted(kBeforeImage) + ", \"ids\": " + listed(asked.before) + "}, " + picture +
      "}, {\"text\": " + quoted(asked.prompt) + ", \"ids\": " + listed(asked.after) + "}], \"settings\": {\"temperature\": " + temperature +
      ", \"num_bos\": 1, \"seq_len\": " + std::to_string(asked.seq_len) + "}";
  if (!error.empty()) {
    return text + ", \"error\": " + quoted(error) + "}\n";
  }
  return text + ", \"prompt_tokens\": " + std::to_string(asked.prompt_tokens) + ", \"answer\": " + quoted(stripped(asked.said)) +
      ", \"answer_ids\": " + listed(asked.answer) + "}\n";
}

} // namespace runner
