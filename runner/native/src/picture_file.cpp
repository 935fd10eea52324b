// What a JPEG or PNG file says of itself, checked before a decoder sees it: structure, checksums, sizes, depth, orientation. stb_image
// looks at none of the checksums, and takes a file that was cut off for a picture with a grey rest.
#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "constants.hpp"
#include "picture.hpp"
#include "stb.hpp"

namespace runner {
namespace {

using std::string_literals::operator""s;

const std::string kPngMark = "\x89PNG\r\n\x1a\n";
const std::string kJpegMark = "\xff\xd8\xff";
constexpr size_t kTextLimit = 1 << 20; // as Pillow's, of one text in a PNG
constexpr int64_t kScans = 256; // a progressive JPEG has ten; each one passes over the whole picture

std::runtime_error damaged(const std::string& what, size_t at) {
  return std::runtime_error("the picture cannot be read: " + what + ", at byte " + std::to_string(at) + "; get the whole file again");
}

uint64_t number(std::string_view data, size_t at, size_t bytes) {
  if (at > data.size() || data.size() - at < bytes) {
    throw damaged("it is cut off", data.size());
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value = value << 8 | static_cast<uint8_t>(data[at + i]);
  }
  return value;
}

void check_size(int64_t width, int64_t height) {
  const std::string size = std::to_string(width) + " x " + std::to_string(height);
  if (width < 1 || height < 1) {
    throw std::runtime_error("the picture is empty: " + size);
  }
  if (width * height > kPictureLimitPixels) {
    throw std::runtime_error(
        "the image is too large: " + size + ", expected at most " + std::to_string(kPictureLimitPixels) + " pixels; scale it down");
  }
  if (std::max(width, height) > kPictureLimitAspect * std::min(width, height)) {
    throw std::runtime_error(
        "the image is too narrow: " + size + ", expected an aspect ratio of at most " + std::to_string(kPictureLimitAspect) + "; crop it");
  }
}

// ---- JPEG: ITU-T T.81, annex B

bool alone(uint8_t marker) { return marker == 0x01 || (marker >= 0xD0 && marker <= 0xD9); } // without a length behind it

bool begins_frame(uint8_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

// Where the next marker's second byte is: behind entropy-coded data, or behind bytes that should not be there.
size_t next_marker(std::string_view data, size_t at) {
  for (; at + 1 < data.size(); ++at) {
    const auto behind = static_cast<uint8_t>(data[at + 1]);
    if (static_cast<uint8_t>(data[at]) == 0xFF && behind != 0x00 && behind != 0xFF && !(behind >= 0xD0 && behind <= 0xD7)) {
      return at + 1;
    }
  }
  throw damaged("it is cut off: it has no end marker", data.size());
}

void read_frame(std::string_view segment, bool adobe, PictureFile& file) {
  const uint64_t bits = number(segment, 0, 1), components = number(segment, 5, 1);
  file.height = static_cast<int64_t>(number(segment, 1, 2));
  file.width = static_cast<int64_t>(number(segment, 3, 2));
  check_size(file.width, file.height);
  if (bits != 8) {
    throw std::runtime_error("the image has " + std::to_string(bits) + " bits a channel, expected 8; scale it to 8 bits yourself");
  }
  if (components != 1 && components != 3 && !(components == 4 && adobe)) {
    throw std::runtime_error(
        "the image has " + std::to_string(components) + " channels of unknown colours, expected grey, colour, or Adobe's CMYK; convert it to RGB");
  }
}

PictureFile check_jpeg(const std::string& data) {
  PictureFile file;
  std::string exif, xmp;
  bool adobe = false;
  int64_t scans = 0;
  const std::string_view whole(data);
  size_t at = next_marker(whole, 2);
  for (uint8_t marker = static_cast<uint8_t>(whole[at]); marker != 0xD9; marker = static_cast<uint8_t>(whole[at])) {
    size_t end = at + 1;
    if (!alone(marker)) {
      end += number(whole, at + 1, 2);
      if (end > whole.size() || end < at + 3) {
        throw damaged("a segment is longer than the file, or has no length", at);
      }
      const std::string_view segment = whole.substr(at + 3, end - at - 3);
      const bool header = scans == 0;
      if (marker == 0xE1 && header && segment.substr(0, 6) == "Exif\0\0"s) {
        exif += exif.empty() ? segment : segment.substr(6);
      } else if (marker == 0xE1 && header && segment.substr(0, 29) == "http://ns.adobe.com/xap/1.0/\0"s) {
        xmp = segment.substr(29);
      } else if (marker == 0xEE && segment.substr(0, 5) == "Adobe") {
        adobe = true;
      } else if (begins_frame(marker) && file.width == 0) {
        read_frame(segment, adobe, file);
      } else if (marker == 0xDA && (file.width == 0 || ++scans > kScans)) {
        throw damaged(file.width == 0 ? "a scan comes before the size" : "it has more than 256 scans", at);
      }
    }
    at = next_marker(whole, end);
  }
  if (scans == 0) {
    throw damaged("it has no scan", at);
  }
  file.orientation = exif_orientation(exif);
  file.orientation = file.orientation != 0 ? file.orientation : xmp_orientation(xmp);
  file.checked = data.substr(0, at + 1);
  return file;
}

// ---- PNG: W3C's specification, third edition

uint32_t checksum(std::string_view data) {
  static const auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) {
        value = (value & 1) != 0 ? 0xEDB88320u ^ value >> 1 : value >> 1;
      }
      table[byte] = value;
    }
    return table;
  }();
  uint32_t value = ~0u;
  for (const char byte : data) {
    value = kTable[(value ^ static_cast<uint8_t>(byte)) & 0xFF] ^ value >> 8;
  }
  return ~value;
}

void append_chunk(std::string& png, const std::string& kind, const std::string& data) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    png += static_cast<char>(data.size() >> shift & 0xFF);
  }
  png += kind + data + std::string(4, '\0'); // stb does not look at the checksum
}

std::string inflated(std::string_view data) {
  std::string text(kTextLimit, '\0');
  const int size = stbi_zlib_decode_buffer(text.data(), static_cast<int>(text.size()), data.data(), static_cast<int>(data.size()));
  text.resize(static_cast<size_t>(std::max(size, 0)));
  return text;
}

// The text of a tEXt, zTXt or iTXt chunk with one of the two keywords that can hold an orientation; "" for any other.
std::string text_of(const std::string& kind, std::string_view data, std::string_view keyword) {
  if (data.substr(0, keyword.size()) != keyword || data.size() <= keyword.size() || data[keyword.size()] != '\0') {
    return "";
  }
  data.remove_prefix(keyword.size() + 1);
  if (kind == "tEXt") {
    return std::string(data);
  }
  bool packed = kind == "zTXt";
  size_t begin = 1;
  if (kind == "iTXt") { // two flags, a language and a translated keyword
    packed = !data.empty() && data[0] != 0;
    begin = data.find('\0', 2);
    begin = begin == std::string_view::npos ? begin : data.find('\0', begin + 1);
    begin = begin == std::string_view::npos ? begin : begin + 1;
  }
  if (begin > data.size()) {
    return "";
  }
  data.remove_prefix(begin);
  return packed ? inflated(data) : std::string(data);
}

// ImageMagick's way to put EXIF into a text: three lines, then hexadecimal digits in lines.
std::string raw_profile(const std::string& text) {
  size_t at = 0;
  for (int line = 0; line < 3 && at != std::string::npos; ++line) {
    at = text.find('\n', at);
    at = at == std::string::npos ? at : at + 1;
  }
  std::string bytes, digits;
  for (; at < text.size(); ++at) {
    if (std::isxdigit(static_cast<unsigned char>(text[at])) == 0) {
      continue;
    }
    digits += text[at];
    if (digits.size() == 2) {
      bytes += static_cast<char>(std::stoi(digits, nullptr, 16));
      digits.clear();
    }
  }
  return bytes;
}

struct PngParts {
  std::string header, palette, pixels, exif, profile, xmp;
};

void take_chunk(const std::string& kind, std::string_view data, PngParts& parts) {
  if (kind == "IDAT") {
    parts.pixels += data;
  } else if (kind == "PLTE") {
    parts.palette = data;
  } else if (kind == "eXIf") {
    parts.exif = data;
  } else if (kind == "tEXt" || kind == "zTXt" || kind == "iTXt") {
    const std::string profile = text_of(kind, data, "Raw profile type exif");
    parts.profile = profile.empty() ? parts.profile : raw_profile(profile);
    const std::string xmp = text_of(kind, data, "XML:com.adobe.xmp");
    parts.xmp = xmp.empty() ? parts.xmp : xmp;
  }
}

PngParts take_apart(std::string_view whole) {
  PngParts parts;
  size_t at = kPngMark.size();
  for (std::string kind; kind != "IEND";) {
    const uint64_t length = number(whole, at, 4);
    if (length > whole.size() || at + 12 + length > whole.size()) {
      throw damaged("it is cut off", whole.size());
    }
    kind = whole.substr(at + 4, 4);
    const std::string_view data = whole.substr(at + 8, length);
    if (checksum(whole.substr(at + 4, 4 + length)) != number(whole, at + 8 + length, 4)) {
      throw damaged("a checksum is wrong", at);
    }
    if ((kind == "IHDR") != (at == kPngMark.size())) {
      throw damaged("its header is not the first thing in it, or it has two", at);
    }
    if (kind == "IHDR") {
      parts.header = data;
    } else {
      take_chunk(kind, data, parts);
    }
    at += 12 + length;
  }
  return parts;
}

PictureFile check_png(const std::string& data) {
  PngParts parts = take_apart(data);
  PictureFile file;
  file.width = static_cast<int64_t>(number(parts.header, 0, 4));
  file.height = static_cast<int64_t>(number(parts.header, 4, 4));
  check_size(file.width, file.height);
  const uint64_t bits = number(parts.header, 8, 1), colours = number(parts.header, 9, 1);
  if (bits == 16 && colours == 0) {
    throw std::runtime_error("the image has 16 bits in one channel, expected 8: there is no rule to scale them; scale it to 8 bits yourself");
  }
  if (parts.pixels.empty()) {
    throw damaged("it has no pixels", 0);
  }
  file.checked = kPngMark;
  append_chunk(file.checked, "IHDR", parts.header);
  if (colours == 3) {
    if (parts.palette.empty()) {
      throw damaged("it has no palette", 0);
    }
    parts.palette.resize(768, '\0'); // colours that it lacks are black, as Pillow has them
    append_chunk(file.checked, "PLTE", parts.palette);
  }
  append_chunk(file.checked, "IDAT", parts.pixels);
  append_chunk(file.checked, "IEND", "");
  file.orientation = exif_orientation(parts.exif.empty() ? parts.profile : parts.exif);
  file.orientation = file.orientation != 0 ? file.orientation : xmp_orientation(parts.xmp);
  return file;
}

} // namespace

PictureFile check_picture(const std::string& data) {
  if (data.compare(0, kPngMark.size(), kPngMark) == 0) {
    return check_png(data);
  }
  if (data.compare(0, kJpegMark.size(), kJpegMark) == 0) {
    return check_jpeg(data);
  }
  throw std::runtime_error("neither a JPEG nor a PNG picture");
}

} // namespace runner
