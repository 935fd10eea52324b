// UTF-8, strictly: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstdint>
#include <string>

namespace runner {

// Bytes of the character that begins here; 1 for a byte that begins none.
inline size_t character_bytes(const std::string& text, size_t at) {
  const auto byte = [&](size_t index) { return index < text.size() ? static_cast<unsigned char>(text[index]) : 0u; };
  const auto follows = [&](size_t index, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(index) >= low && byte(index) <= high;
  };
  const unsigned lead = byte(at);
  if (lead >= 0xC2 && lead <= 0xDF) {
    return follows(at + 1) ? 2 : 1;
  }
  if (lead >= 0xE0 && lead <= 0xEF) {
    return follows(at + 1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) && follows(at + 2) ? 3 : 1;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    return follows(at + 1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) && follows(at + 2) && follows(at + 3) ? 4 : 1;
  }
  return 1;
}

// Bytes that one substitute stands for, where no character begins: the beginning of one that is cut off, as Python and browsers have it.
inline size_t damaged_bytes(const std::string& text, size_t at) {
  for (size_t kept = 3; kept > 1; --kept) { // what follows the second byte may be any of 80 to BF
    if (at + kept <= text.size() && character_bytes(text.substr(at, kept) + "\x80\x80", 0) > kept) {
      return kept;
    }
  }
  return 1;
}

inline bool is_utf8(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const size_t size = character_bytes(text, at);
    if (size == 1 && static_cast<unsigned char>(text[at]) >= 0x80) {
      return false;
    }
    at += size;
  }
  return true;
}

inline void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  const unsigned lead = more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0;
  text += static_cast<char>(lead | (code >> (6 * more)));
  for (int shift = 6 * (more - 1); shift >= 0; shift -= 6) {
    text += static_cast<char>(0x80 | ((code >> shift) & 0x3F));
  }
}

} // namespace runner
