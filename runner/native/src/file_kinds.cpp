// What a file is, by its first bytes, in words for somebody who gave the wrong one; runner/file_kinds.py has the same.
#include <algorithm>
#include <cctype>
#include <cstring>

#include "utf8.hpp"
#include "vocabulary.hpp"

namespace runner {
namespace {

constexpr size_t kWindow = 4096;

// A first line of base64, a blank and a number.
bool is_tiktoken(const std::string& begun) {
  const size_t blank = begun.find(' ');
  const size_t end = begun.find('\n');
  if (blank == std::string::npos || end == std::string::npos || blank == 0 || end <= blank + 1) {
    return false;
  }
  size_t letters = blank;
  while (letters > 0 && begun[letters - 1] == '=' && blank - letters < 2) {
    --letters;
  }
  const auto coded = [](unsigned char c) { return std::isalnum(c) != 0 || c == '+' || c == '/'; };
  const size_t last = begun[end - 1] == '\r' ? end - 1 : end;
  return letters > 0 && std::all_of(begun.begin(), begun.begin() + static_cast<std::ptrdiff_t>(letters), coded) && last > blank + 1 &&
      std::all_of(begun.begin() + static_cast<std::ptrdiff_t>(blank) + 1, begun.begin() + static_cast<std::ptrdiff_t>(last),
                  [](unsigned char c) { return std::isdigit(c) != 0; });
}

} // namespace

std::string describe(const std::string& data) {
  using namespace std::string_literals;
  static const std::pair<std::string, const char*> kBeginnings[] = {
      {"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull)"},
      {"\x89PNG\r\n\x1a\n", "a PNG picture"},
      {"\xff\xd8\xff", "a JPEG picture"},
      {"GIF8", "a GIF picture"},
      {"BM", "a BMP picture"},
      {"%PDF", "a PDF"},
      {"PK\x03\x04", "a ZIP archive (PyTorch's files are such)"},
      {"\x1f\x8b", "a gzip archive"},
      {"\x93NUMPY", "a NumPy array"},
      {"GGUF", "a GGUF model"},
      {"\x7f"s + "ELF", "an ELF program"},
      {"\x80\x02", "a Python pickle"},
      {"\x80\x03", "a Python pickle"},
      {"\x80\x04", "a Python pickle"},
      {"\x80\x05", "a Python pickle"}};
  if (data.empty()) {
    return "an empty file";
  }
  for (const auto& [beginning, kind] : kBeginnings) {
    if (data.compare(0, beginning.size(), beginning) == 0) {
      return kind;
    }
  }
  if (data.compare(0, 4, "RIFF") == 0 && data.size() >= 12 && data.compare(8, 4, "WEBP") == 0) {
    return "a WebP picture";
  }
  if (data.size() >= 8 && data.compare(4, 2, "ET") == 0 && std::isdigit(static_cast<unsigned char>(data[6])) != 0 &&
      std::isdigit(static_cast<unsigned char>(data[7])) != 0) {
    return "an ExecuTorch program (.pte)";
  }
  uint64_t header = 0;
  if (data.size() > 8) {
    std::memcpy(&header, data.data(), sizeof header);
    if (data[8] == '{' && header < uint64_t{1} << 32) {
      return "a safetensors file";
    }
  }
  const std::string begun = data.substr(0, kWindow);
  if (begun.find_first_not_of('\0') == std::string::npos) {
    return "zero bytes";
  }
  const size_t first = begun.find_first_not_of(" \t\r\n");
  std::string text = first == std::string::npos ? "" : begun.substr(first, 9);
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  if (text == "<!doctype" || text.compare(0, 5, "<html") == 0) {
    return "an HTML page (a download that wants a login gives one)";
  }
  if (is_tiktoken(begun)) {
    return "a tiktoken vocabulary, which is not supported";
  }
  bool is_text = false;
  for (size_t cut = 0; cut < 4 && cut < begun.size(); ++cut) { // the last character may be cut
    is_text = is_text || is_utf8(begun.substr(0, begun.size() - cut));
  }
  const bool printable = std::all_of(begun.begin(), begun.end(), [](unsigned char c) { return c >= 32 || c == '\t' || c == '\r' || c == '\n'; });
  return printable && is_text ? "a text file" : "an unknown binary file";
}

} // namespace runner
