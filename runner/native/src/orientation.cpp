// The orientation tag, from EXIF and from XMP, as Pillow finds it.
#include <cctype>

#include "picture.hpp"

namespace runner {
namespace {

constexpr std::string_view kExifMark("Exif\0\0", 6);
constexpr uint64_t kOrientation = 0x0112;

// An unsigned number of a TIFF structure; 0 beyond its end.
uint64_t number(std::string_view data, uint64_t at, size_t bytes, bool little) {
  if (at > data.size() || data.size() - at < bytes) {
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value = value << 8 | static_cast<uint8_t>(data[at + (little ? bytes - 1 - i : i)]);
  }
  return value;
}

// Of TIFF 6.0's types those of one whole number: BYTE, SHORT, LONG and the signed ones. 0 for the others.
size_t whole_bytes(uint64_t type) {
  switch (type) {
    case 1:
    case 6:
      return 1;
    case 3:
    case 8:
      return 2;
    case 4:
    case 9:
      return 4;
    default:
      return 0;
  }
}

} // namespace

int64_t exif_orientation(std::string_view exif) {
  while (exif.substr(0, kExifMark.size()) == kExifMark) {
    exif.remove_prefix(kExifMark.size());
  }
  const bool little = exif.substr(0, 2) == "II";
  if ((!little && exif.substr(0, 2) != "MM") || number(exif, 2, 2, little) != 42) {
    return 0;
  }
  const uint64_t folder = number(exif, 4, 4, little);
  const uint64_t count = number(exif, folder, 2, little);
  int64_t found = 0;
  for (uint64_t entry = folder + 2; entry < folder + 2 + 12 * count && entry + 12 <= exif.size(); entry += 12) {
    const size_t bytes = whole_bytes(number(exif, entry + 2, 2, little));
    if (number(exif, entry, 2, little) == kOrientation && bytes != 0 && number(exif, entry + 4, 4, little) == 1) {
      found = static_cast<int64_t>(number(exif, entry + 8, bytes, little));
    }
  }
  return found;
}

int64_t xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string_view::npos; at = xmp.find(kName, at + 1)) {
    std::string_view behind = xmp.substr(at + kName.size());
    const size_t sign = behind.substr(0, 2) == "=\"" ? 2 : behind.substr(0, 1) == ">" ? 1 : 0;
    if (sign != 0 && behind.size() > sign && std::isdigit(static_cast<unsigned char>(behind[sign])) != 0) {
      return behind[sign] - '0';
    }
  }
  return 0;
}

} // namespace runner
