// Damages picture files at random and has them read: an exception is an answer, anything that a sanitizer sees ends the process.
// usage: picture_fuzz COUNT SEED FILE...; prints how many were read and how many refused.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "picture.hpp"

namespace runner {
std::string describe(const std::string&) { return "something else"; } // vocabulary.cpp's, of which nothing else is needed
} // namespace runner

namespace {

std::string read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

uint32_t checksum(const std::string& data, size_t begin, size_t end) {
  uint32_t value = ~0u;
  for (size_t at = begin; at < end; ++at) {
    value ^= static_cast<uint8_t>(data[at]);
    for (int bit = 0; bit < 8; ++bit) {
      value = (value & 1) != 0 ? 0xEDB88320u ^ value >> 1 : value >> 1;
    }
  }
  return ~value;
}

// Without this, nearly every damaged PNG would be refused for its checksum, and the decoder would see none.
void mend_checksums(std::string& png) {
  for (size_t at = 8; at + 12 <= png.size();) {
    size_t length = 0;
    for (size_t i = 0; i < 4; ++i) {
      length = length << 8 | static_cast<uint8_t>(png[at + i]);
    }
    if (length > png.size() || at + 12 + length > png.size()) {
      return;
    }
    const uint32_t value = checksum(png, at + 4, at + 8 + length);
    for (size_t i = 0; i < 4; ++i) {
      png[at + 8 + length + i] = static_cast<char>(value >> (24 - 8 * i));
    }
    at += 12 + length;
  }
}

std::string damaged(std::string data, std::mt19937& random) {
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % std::max<size_t>(limit, 1)); };
  for (size_t times = 1 + below(6); times-- > 0 && !data.empty();) {
    // the beginning holds headers and tables: half of all damage goes there
    const size_t at = below(random() % 2 == 0 ? std::min<size_t>(data.size(), 700) : data.size());
    switch (below(6)) {
      case 0:
        data[at] = static_cast<char>(random());
        break;
      case 1:
        data[at] = static_cast<char>(data[at] ^ 1 << below(8));
        break;
      case 2:
        data[at] = static_cast<char>(random() % 2 == 0 ? 0xFF : 0x00);
        break;
      case 3:
        data.erase(at, 1 + below(16));
        break;
      case 4:
        data.insert(at, data.substr(below(data.size()), 1 + below(64)));
        break;
      default:
        if (below(8) == 0) {
          data.resize(at);
        }
    }
  }
  if (data.compare(0, 4, "\x89PNG") == 0 && below(8) != 0) {
    mend_checksums(data);
  }
  return data;
}

} // namespace

int main(int count, char** words) {
  std::vector<std::string> files;
  for (int at = 3; at < count; ++at) {
    files.push_back(read(words[at]));
  }
  std::mt19937 random(static_cast<uint32_t>(std::strtoul(words[2], nullptr, 10)));
  long readable = 0, refused = 0;
  for (long at = 0; at < std::strtol(words[1], nullptr, 10); ++at) {
    const std::string data = damaged(files[static_cast<size_t>(at) % files.size()], random);
    try {
      runner::framed(runner::decode_picture(data));
      ++readable;
    } catch (const std::runtime_error&) {
      ++refused;
    }
  }
  std::printf("%ld %ld\n", readable, refused);
  return 0;
}
