#include "json.hpp"

#include <cstdio>
#include <stdexcept>

#include "utf8.hpp"

namespace runner {
namespace {

constexpr int kDepthLimit = 200;
constexpr size_t kValueLimit = 8 << 20; // a million pieces, and as many merges of two pieces each, are five million values

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json whole() {
    Json made = value(0);
    skip();
    if (at_ != text_.size()) {
      fail();
    }
    return made;
  }

 private:
  [[noreturn]] static void fail() { throw std::runtime_error("JSON that cannot be parsed, cut off or damaged"); }

  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  char peek() {
    skip();
    if (at_ == text_.size()) {
      fail();
    }
    return text_[at_];
  }

  void expect(char wanted) {
    if (peek() != wanted) {
      fail();
    }
    ++at_;
  }

  Json value(int depth) {
    if (depth > kDepthLimit) {
      fail();
    }
    if (++values_ > kValueLimit) {
      throw std::runtime_error("JSON of more than " + std::to_string(kValueLimit) + " values");
    }
    Json made;
    switch (peek()) {
      case '{':
        object(made, depth);
        break;
      case '[':
        array(made, depth);
        break;
      case '"':
        made.kind = Json::Kind::string;
        made.text = string();
        break;
      case 't':
      case 'f':
        made.kind = Json::Kind::boolean;
        made.truth = text_[at_] == 't';
        word(made.truth ? "true" : "false");
        break;
      case 'n':
        word("null");
        break;
      default:
        number(made);
    }
    return made;
  }

  void word(const std::string& wanted) {
    if (text_.compare(at_, wanted.size(), wanted) != 0) {
      fail();
    }
    at_ += wanted.size();
  }

  void digits() {
    const size_t begun = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      ++at_;
    }
    if (at_ == begun) {
      fail();
    }
  }

  bool taken(char one, char other) {
    const bool here = at_ < text_.size() && (text_[at_] == one || text_[at_] == other);
    at_ += here ? 1 : 0;
    return here;
  }

  void number(Json& made) {
    const size_t begun = at_;
    taken('-', '-');
    digits();
    if (taken('.', '.')) {
      digits();
    }
    if (taken('e', 'E')) {
      taken('+', '-');
      digits();
    }
    made.kind = Json::Kind::number;
    made.text = text_.substr(begun, at_ - begun);
  }

  uint32_t hexadecimal() {
    uint32_t code = 0;
    for (int count = 0; count < 4; ++count, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : ' ';
      if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) {
        fail();
      }
      code = code * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return code;
  }

  // Behind `\u`; two of them make a character beyond U+FFFF.
  uint32_t escaped() {
    const uint32_t code = hexadecimal();
    if (code < 0xD800 || code > 0xDFFF) {
      return code;
    }
    if (code > 0xDBFF || text_.compare(at_, 2, "\\u") != 0) {
      fail();
    }
    at_ += 2;
    const uint32_t low = hexadecimal();
    if (low < 0xDC00 || low > 0xDFFF) {
      fail();
    }
    return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }

  std::string string() {
    static const std::string kLetters = "\"\\/bfnrt";
    static const std::string kMeant = "\"\\/\b\f\n\r\t";
    std::string made;
    for (++at_;; ++at_) {
      if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) {
        fail();
      }
      if (text_[at_] == '"') {
        ++at_;
        return made;
      }
      if (text_[at_] != '\\') {
        made += text_[at_];
        continue;
      }
      if (++at_ >= text_.size()) {
        fail();
      }
      if (text_[at_] == 'u') {
        ++at_;
        append_utf8(made, escaped());
        --at_;
        continue;
      }
      const size_t letter = kLetters.find(text_[at_]);
      if (letter == std::string::npos) {
        fail();
      }
      made += kMeant[letter];
    }
  }

  void object(Json& made, int depth) {
    made.kind = Json::Kind::object;
    ++at_;
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      if (peek() != '"') {
        fail();
      }
      std::string key = string();
      expect(':');
      made.members.emplace_back(std::move(key), value(depth + 1));
      if (peek() != ',') {
        break;
      }
      ++at_;
    }
    expect('}');
  }

  void array(Json& made, int depth) {
    made.kind = Json::Kind::array;
    ++at_;
    if (peek() == ']') {
      ++at_;
      return;
    }
    for (;;) {
      made.items.push_back(value(depth + 1));
      if (peek() != ',') {
        break;
      }
      ++at_;
    }
    expect(']');
  }

  const std::string& text_;
  size_t at_ = 0;
  size_t values_ = 0;
};

void append_unit(std::string& out, uint32_t unit) {
  char code[8];
  std::snprintf(code, sizeof code, "\\u%04x", unit & 0xFFFF);
  out += code;
}

void append_quoted(std::string& out, uint32_t code) {
  static const std::string kMeant = "\"\\\b\f\n\r\t";
  static const std::string kLetters = "\"\\bfnrt";
  const size_t letter = code < 0x80 ? kMeant.find(static_cast<char>(code)) : std::string::npos;
  if (letter != std::string::npos) {
    out += '\\';
    out += kLetters[letter];
  } else if (code >= 0x20 && code < 0x7F) {
    out += static_cast<char>(code);
  } else if (code < 0x10000) {
    append_unit(out, code);
  } else {
    append_unit(out, 0xD800 + ((code - 0x10000) >> 10));
    append_unit(out, 0xDC00 + ((code - 0x10000) & 0x3FF));
  }
}

// The character of so many bytes that begins here.
uint32_t character(const std::string& text, size_t at, size_t bytes) {
  const auto lead = static_cast<unsigned char>(text[at]);
  uint32_t code = bytes == 1 ? lead : lead & (0xFFu >> (bytes + 1));
  for (size_t more = 1; more < bytes; ++more) {
    code = code << 6 | (static_cast<unsigned char>(text[at + more]) & 0x3Fu);
  }
  return code;
}

} // namespace

std::string quoted(const std::string& text) {
  constexpr uint32_t kSubstitute = 0xFFFD;
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = character_bytes(text, at);
    const bool damaged = bytes == 1 && static_cast<unsigned char>(text[at]) >= 0x80;
    append_quoted(out, damaged ? kSubstitute : character(text, at, bytes));
    at += damaged ? damaged_bytes(text, at) : bytes;
  }
  return out + "\"";
}

Json Json::parse(const std::string& text) {
  if (!is_utf8(text)) {
    throw std::runtime_error("JSON that cannot be parsed, cut off or damaged");
  }
  return Parser(text).whole();
}

const Json* Json::find(const std::string& key) const {
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->first == key) {
      return &member->second;
    }
  }
  return nullptr;
}

const Json& Json::at(const std::string& key) const {
  const Json* found = find(key);
  if (found == nullptr) {
    throw std::runtime_error("a damaged tokenizer.json: no " + key);
  }
  return *found;
}

bool Json::truthy() const {
  switch (kind) {
    case Kind::boolean:
      return truth;
    case Kind::number:
      return text.find_first_of("123456789") != std::string::npos;
    case Kind::string:
      return !text.empty();
    case Kind::array:
      return !items.empty();
    case Kind::object:
      return !members.empty();
    default:
      return false;
  }
}

std::optional<int64_t> Json::integer() const {
  if (kind != Kind::number || text.size() > 18 || text.find_first_of(".eE") != std::string::npos) {
    return std::nullopt;
  }
  return std::stoll(text);
}

const std::string& Json::string() const {
  if (kind != Kind::string) {
    throw std::runtime_error("a damaged tokenizer.json: a string is missing");
  }
  return text;
}

const std::vector<Json>& Json::array() const {
  if (kind != Kind::array) {
    throw std::runtime_error("a damaged tokenizer.json: a list is missing");
  }
  return items;
}

} // namespace runner
