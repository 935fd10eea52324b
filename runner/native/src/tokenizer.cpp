#include "tokenizer.hpp"

#include <cstdio>
#include <fstream>
#include <stdexcept>

namespace runner {
namespace {

constexpr uint32_t kVocabularyLimit = 1 << 20;
constexpr uint32_t kPieceLimit = 1 << 12;
constexpr int64_t kFirstByte = 3; // ids 3..258 stand for single bytes, `<0x00>` to `<0xFF>`

template <typename T>
T read(std::ifstream& file, const std::filesystem::path& path) {
  T value{};
  if (!file.read(reinterpret_cast<char*>(&value), sizeof value)) {
    throw std::runtime_error(path.string() + ": ends too early, not a tokenizer.bin");
  }
  return value;
}

// Bytes of the UTF-8 character that begins here; 1 for what is none.
size_t character_bytes(const std::string& text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t size = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
  return std::min(size, text.size() - at);
}

} // namespace

Tokenizer::Tokenizer(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path.string() + ": no such tokenizer; python -m verifier.export_llava --with-artifacts writes one");
  }
  const auto count = read<uint32_t>(file, path);
  bos = read<uint32_t>(file, path);
  eos = read<uint32_t>(file, path);
  read<uint32_t>(file, path); // longest piece
  if (count == 0 || count > kVocabularyLimit || bos >= count || eos >= count) {
    throw std::runtime_error(path.string() + ": not a tokenizer.bin");
  }
  for (uint32_t id = 0; id < count; ++id) {
    scores_.push_back(read<float>(file, path));
    const auto size = read<uint32_t>(file, path);
    if (size > kPieceLimit) {
      throw std::runtime_error(path.string() + ": not a tokenizer.bin, a piece of " + std::to_string(size) + " bytes");
    }
    std::string piece(size, '\0');
    if (!file.read(piece.data(), size)) {
      throw std::runtime_error(path.string() + ": ends too early, not a tokenizer.bin");
    }
    if (id > 2) { // <unk>, <s> and </s> are never made from text
      ids_.emplace(piece, id);
    }
    pieces_.push_back(std::move(piece));
  }
}

std::vector<int64_t> Tokenizer::encode(const std::string& text) const {
  std::vector<std::string> parts;
  const std::string spelled = text.empty() ? text : " " + text;
  for (size_t at = 0; at < spelled.size();) {
    const size_t size = character_bytes(spelled, at);
    parts.push_back(spelled.substr(at, size));
    at += size;
  }
  while (parts.size() > 1) { // the best pair first, the leftmost of equals
    size_t best = parts.size();
    float score = 0;
    for (size_t at = 0; at + 1 < parts.size(); ++at) {
      const auto found = ids_.find(parts[at] + parts[at + 1]);
      if (found != ids_.end() && (best == parts.size() || scores_[found->second] > score)) {
        best = at;
        score = scores_[found->second];
      }
    }
    if (best == parts.size()) {
      break;
    }
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<int64_t> ids;
  for (const std::string& part : parts) {
    const auto found = ids_.find(part);
    if (found != ids_.end()) {
      ids.push_back(found->second);
      continue;
    }
    for (const char byte : part) {
      ids.push_back(kFirstByte + static_cast<unsigned char>(byte));
    }
  }
  return ids;
}

std::string Tokenizer::piece(int64_t id) const {
  if (id < 0 || id >= static_cast<int64_t>(pieces_.size()) || id == bos || id == eos) {
    return "";
  }
  const std::string& piece = pieces_[static_cast<size_t>(id)];
  if (piece.size() == 6 && piece.compare(0, 3, "<0x") == 0 && piece[5] == '>') {
    return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  }
  return piece;
}

} // namespace runner
