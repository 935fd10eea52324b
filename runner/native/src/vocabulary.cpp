#include "vocabulary.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>

#include "constants.hpp"

namespace runner {

const char* const kBlank = "\xE2\x96\x81";

namespace {

constexpr const char* kFix = "python -m verifier.export_llava --with-artifacts writes tokenizer.bin";

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

template <typename T>
T read(const std::string& data, size_t at) {
  T value{};
  std::memcpy(&value, data.data() + at, sizeof value);
  return value;
}

bool is_bin(const std::string& data) {
  if (data.size() < 16) {
    return false;
  }
  const auto count = read<uint32_t>(data, 0);
  const auto longest = read<uint32_t>(data, 12);
  return count > 0 && count <= kVocabularyLimit && read<uint32_t>(data, 4) < count && read<uint32_t>(data, 8) < count && longest > 0 &&
      longest <= kPieceLimitBytes;
}

// Count, BOS, EOS, longest piece; then score, length and bytes of each.
Vocabulary parse_bin(const std::string& data) {
  Vocabulary made;
  const auto count = read<uint32_t>(data, 0);
  made.bos = read<uint32_t>(data, 4);
  made.eos = {read<uint32_t>(data, 8)};
  made.unknown = 0;
  made.spelling = {" ", {{"", " "}}, "", false};
  size_t at = 16;
  for (uint32_t id = 0; id < count; ++id) {
    if (at + 8 > data.size()) {
      throw std::runtime_error("a tokenizer.bin that ends after " + std::to_string(id) + " of " + std::to_string(count) + " pieces");
    }
    const auto score = read<float>(data, at);
    const auto size = read<uint32_t>(data, at + 4);
    if (size > kPieceLimitBytes || !std::isfinite(score)) {
      throw std::runtime_error(
          "a damaged tokenizer.bin: piece " + std::to_string(id) + " has " + std::to_string(size) + " bytes and the score " +
          number_text(score));
    }
    if (at + 8 + size > data.size()) {
      throw std::runtime_error("a tokenizer.bin that ends within piece " + std::to_string(id) + " of " + std::to_string(count));
    }
    const std::string piece = data.substr(at + 8, size);
    made.scores.push_back(score);
    if (id > 2) { // <unk>, <s> and </s> are never made from text; of equal pieces the first counts
      made.ids.emplace(piece, id);
    }
    if (id != made.bos && id != made.eos[0]) {
      made.spoken.emplace(id, said(piece, " "));
    }
    at += 8 + size;
  }
  for (int64_t byte = 0; byte < 256 && kFirstByte + byte < count; ++byte) {
    made.bytes_ids[static_cast<size_t>(byte)] = kFirstByte + byte;
  }
  return made;
}

// One field of a protobuf message: a number, or bytes (those of fixed size too).
struct Field {
  uint64_t number = 0;
  bool is_bytes = false;
  uint64_t value = 0;
  std::string bytes;
};

class Message {
 public:
  explicit Message(const std::string& data) : data_(data) {}

  bool next(Field& field) {
    if (at_ >= data_.size()) {
      return false;
    }
    const uint64_t key = varint();
    const uint64_t wire = key & 7;
    field = Field{key >> 3, wire != 0, 0, ""};
    if (field.number == 0 || (wire != 0 && wire != 1 && wire != 2 && wire != 5)) {
      throw std::runtime_error("a damaged SentencePiece model: not a protobuf message");
    }
    if (wire == 0) {
      field.value = varint();
      return true;
    }
    const uint64_t size = wire == 1 ? 8 : wire == 5 ? 4 : varint();
    if (size > data_.size() - at_) {
      throw std::runtime_error("a SentencePiece model that ends too early");
    }
    field.bytes = data_.substr(at_, size);
    at_ += size;
    return true;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ >= data_.size()) {
        throw std::runtime_error("a SentencePiece model that ends too early");
      }
      const auto byte = static_cast<unsigned char>(data_[at_++]);
      value |= shift < 64 ? static_cast<uint64_t>(byte & 0x7F) << shift : 0;
      if (byte < 0x80) {
        return value;
      }
    }
    throw std::runtime_error("a damaged SentencePiece model: not a protobuf message");
  }

  const std::string& data_;
  size_t at_ = 0;
};

std::map<uint64_t, Field> fields(const std::string& data) {
  std::map<uint64_t, Field> found;
  Message message(data);
  for (Field field; message.next(field);) {
    found[field.number] = field;
  }
  return found;
}

uint64_t value_of(const std::map<uint64_t, Field>& spec, uint64_t number, uint64_t otherwise) {
  const auto found = spec.find(number);
  return found == spec.end() || found->second.is_bytes ? otherwise : found->second.value;
}

std::string bytes_of(const std::map<uint64_t, Field>& spec, uint64_t number, const std::string& otherwise) {
  const auto found = spec.find(number);
  return found == spec.end() || !found->second.is_bytes ? otherwise : found->second.bytes;
}

enum PieceType : uint64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct Piece {
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};

Piece read_piece(const std::string& data, size_t number) {
  const auto spec = fields(data);
  const std::string bits = bytes_of(spec, 2, std::string(4, '\0'));
  if (bits.size() != 4) {
    throw std::runtime_error("a damaged SentencePiece model: piece " + std::to_string(number) + " cannot be read");
  }
  Piece piece{bytes_of(spec, 1, ""), read<float>(bits, 0), value_of(spec, 3, kNormal)};
  if (!std::isfinite(piece.score) || piece.text.size() > kPieceLimitBytes || piece.type < kNormal || piece.type > kByte) {
    throw std::runtime_error(
        "a damaged SentencePiece model: piece " + std::to_string(number) + " has " + std::to_string(piece.text.size()) +
        " bytes, the score " + number_text(piece.score) + " and type " + std::to_string(piece.type));
  }
  return piece;
}

void refuse_other_models(const std::map<uint64_t, Field>& trainer, const std::map<uint64_t, Field>& normalizer) {
  switch (value_of(trainer, 3, 1)) {
    case 1:
      throw std::runtime_error("a SentencePiece unigram model");
    case 2:
      break;
    case 3:
      throw std::runtime_error("a SentencePiece word model");
    case 4:
      throw std::runtime_error("a SentencePiece character model");
    default:
      throw std::runtime_error("a SentencePiece model of a kind unknown");
  }
  if (!bytes_of(normalizer, 2, "").empty()) {
    const std::string name = bytes_of(normalizer, 1, "");
    throw std::runtime_error(
        "a SentencePiece model with the normalizer " + (name.empty() ? "unnamed" : name) + ": only identity is supported");
  }
  const char* odd = value_of(normalizer, 4, 1) != 0 ? "remove_extra_whitespaces"
      : value_of(normalizer, 5, 1) == 0             ? "escape_whitespaces off"
      : value_of(trainer, 24, 0) != 0               ? "treat_whitespace_as_suffix"
                                                    : nullptr;
  if (odd != nullptr) {
    throw std::runtime_error(std::string("a SentencePiece model with ") + odd + ", which is not supported");
  }
}

// SentencePiece's protobuf: pieces with score and type, what the trainer was told, what the normalizer does.
Vocabulary parse_model(const std::string& data) {
  std::vector<Piece> pieces;
  std::map<uint64_t, Field> trainer;
  std::map<uint64_t, Field> normalizer;
  Message message(data);
  for (Field field; message.next(field);) {
    if (!field.is_bytes) {
      continue;
    }
    if (field.number == 1) {
      pieces.push_back(read_piece(field.bytes, pieces.size()));
      if (pieces.size() > kVocabularyLimit) {
        throw std::runtime_error("a SentencePiece model of more than " + std::to_string(kVocabularyLimit) + " pieces");
      }
    } else if (field.number == 2) {
      trainer = fields(field.bytes);
    } else if (field.number == 3) {
      normalizer = fields(field.bytes);
    }
  }
  refuse_other_models(trainer, normalizer);
  Vocabulary made;
  std::unordered_map<std::string, int64_t> names;
  for (size_t number = 0; number < pieces.size(); ++number) {
    const Piece& piece = pieces[number];
    const auto id = static_cast<int64_t>(number);
    if (piece.type == kUnused) {
      throw std::runtime_error("a SentencePiece model with an unused piece, " + std::to_string(number) + ": they are not supported");
    }
    (piece.type == kNormal || piece.type == kUserDefined ? made.ids : names).emplace(piece.text, id);
    if (piece.type == kUnknown && made.unknown < 0) {
      made.unknown = id;
    }
    if (piece.type != kControl) {
      made.spoken.emplace(id, said(piece.text, kBlank));
    }
    if (piece.type == kUserDefined && !piece.text.empty()) {
      made.user_defined.push_back(piece.text);
    }
    made.scores.push_back(piece.score);
  }
  const auto bos = names.find(bytes_of(trainer, 46, "<s>"));
  const auto eos = names.find(bytes_of(trainer, 47, "</s>"));
  if (made.unknown < 0 || bos == names.end() || eos == names.end()) {
    throw std::runtime_error("a SentencePiece model without <unk>, BOS or EOS");
  }
  made.bos = bos->second;
  made.eos = {eos->second};
  if (value_of(trainer, 35, 0) != 0) {
    for (int byte = 0; byte < 256; ++byte) {
      char piece[8];
      std::snprintf(piece, sizeof piece, "<0x%02X>", byte);
      const auto found = names.find(piece);
      made.bytes_ids[static_cast<size_t>(byte)] = found == names.end() ? -1 : found->second;
    }
  }
  made.spelling.blank = kBlank;
  if (value_of(normalizer, 3, 1) != 0) {
    made.spelling.steps.emplace_back("", kBlank);
  }
  made.spelling.steps.emplace_back(" ", kBlank);
  std::sort(made.user_defined.begin(), made.user_defined.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  return made;
}

Vocabulary parse(const std::string& data) {
  if (data.size() > kFileLimitBytes) {
    throw std::runtime_error(describe(data) + " of more than " + std::to_string(kFileLimitBytes >> 20) + " MiB");
  }
  const size_t begun = data.find_first_not_of(" \t\r\n");
  if (begun != std::string::npos && data[begun] == '{') {
    return parse_json(data);
  }
  if (is_bin(data)) {
    return parse_bin(data);
  }
  if (data.size() > 2 && data[0] == '\n' && data[2] == '\n') { // field 1, a piece, whose field 1 is its text
    return parse_model(data);
  }
  throw std::runtime_error(describe(data));
}

} // namespace

std::string replaced(std::string text, const std::string& old, const std::string& with) {
  std::string made;
  size_t begun = 0;
  for (size_t at = text.find(old); at != std::string::npos; at = text.find(old, begun)) {
    made.append(text, begun, at - begun);
    made += with;
    begun = at + old.size();
  }
  return made.append(text, begun, std::string::npos);
}

std::vector<std::string> Spelling::words(std::string text, bool first) const {
  if (text.empty()) {
    return {};
  }
  for (const auto& [old, with] : steps) {
    text = old.empty() ? with + text : replaced(std::move(text), old, with);
  }
  if (!scheme.empty()) {
    text = replaced(std::move(text), " ", blank);
    const bool wanted = scheme == "always" || (scheme == "first" && first);
    if (wanted && text.compare(0, blank.size(), blank) != 0) {
      text = blank + text;
    }
  }
  if (!split) {
    return {text};
  }
  std::vector<std::string> found;
  size_t begun = 0;
  for (size_t at = text.find(blank, 1); begun < text.size(); at = text.find(blank, begun + blank.size())) {
    const size_t end = at == std::string::npos ? text.size() : at;
    found.push_back(text.substr(begun, end - begun));
    begun = end;
  }
  return found;
}

std::optional<double> Vocabulary::rank(const std::string& left, const std::string& right) const {
  if (by_rank) {
    const auto found = ranks.find(left + '\xFF' + right);
    return found == ranks.end() ? std::nullopt : std::optional<double>(found->second);
  }
  const auto found = ids.find(left + right);
  return found == ids.end() ? std::nullopt : std::optional<double>(-static_cast<double>(scores[static_cast<size_t>(found->second)]));
}

Vocabulary read_vocabulary(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw std::runtime_error(path.string() + ": no such tokenizer; " + kFix);
  }
  const uint64_t size = std::filesystem::file_size(path);
  std::ifstream file(path, std::ios::binary);
  std::string data(std::min<uint64_t>(size, kFileLimitBytes + 1), '\0');
  if (!file || !file.read(data.data(), static_cast<std::streamsize>(data.size()))) {
    throw std::runtime_error(path.string() + ": the tokenizer cannot be read");
  }
  try {
    return parse(data);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(
        path.string() + ": not a tokenizer.bin, tokenizer.model or tokenizer.json: " + error.what() + " (" + std::to_string(size) +
        " bytes); " + kFix);
  }
}

std::optional<int> byte_of(const std::string& piece) {
  if (piece.size() != 6 || piece.compare(0, 3, "<0x") != 0 || piece[5] != '>') {
    return std::nullopt;
  }
  const std::string digits = piece.substr(3, 2);
  if (digits.find_first_not_of("0123456789ABCDEF") != std::string::npos) {
    return std::nullopt;
  }
  return std::stoi(digits, nullptr, 16);
}

std::string said(const std::string& piece, const std::string& blank) {
  const auto byte = byte_of(piece);
  return byte ? std::string(1, static_cast<char>(*byte)) : replaced(piece, blank, " ");
}

} // namespace runner
