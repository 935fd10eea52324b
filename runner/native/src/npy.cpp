#include "npy.hpp"

#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>

namespace runner {
namespace {

constexpr size_t kHeaderLimit = 4096;
constexpr uint64_t kDirectoryLimit = 1 << 20;

std::runtime_error failure(const std::filesystem::path& path, const std::string& reason) {
  return std::runtime_error(path.string() + ": " + reason);
}

// The text behind a key of the header, which is a Python dictionary of three fixed keys.
std::string after(const std::string& header, const std::string& key, const std::filesystem::path& path) {
  const size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) {
    throw failure(path, "its header has no " + key);
  }
  size_t begin = at + key.size() + 3;
  while (begin < header.size() && header[begin] == ' ') {
    ++begin;
  }
  return header.substr(begin);
}

} // namespace

int64_t Array::count() const {
  int64_t total = 1;
  for (const int64_t size : shape) {
    total *= size;
  }
  return total;
}

size_t item_bytes(const std::string& dtype) {
  static const char* const known[] = {"b1", "u1", "i1", "i2", "u2", "f2", "i4", "f4", "i8", "f8"};
  for (const char* name : known) {
    if (dtype == name) {
      return static_cast<size_t>(name[1] - '0');
    }
  }
  throw std::runtime_error("an array of dtype " + dtype + ", expected plain numbers");
}

Array read_npy(const std::filesystem::path& path, Place place) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(place.offset));
  char head[10] = {};
  if (!file.read(head, sizeof head) || std::memcmp(head, "\x93NUMPY\x01\x00", 8) != 0) {
    throw failure(path, "not an array in NumPy's format 1.0");
  }
  const size_t length = static_cast<uint8_t>(head[8]) | static_cast<size_t>(static_cast<uint8_t>(head[9])) << 8;
  std::string header(std::min(length, kHeaderLimit), '\0');
  if (length > kHeaderLimit || !file.read(header.data(), static_cast<std::streamsize>(length))) {
    throw failure(path, "its header is cut off or too long");
  }
  const std::string descr = after(header, "descr", path);
  if (descr.size() < 6 || descr[0] != '\'' || (descr[1] != '<' && descr[1] != '|') || descr[4] != '\'') {
    throw failure(path, "not an array of plain little-endian numbers");
  }
  if (after(header, "fortran_order", path).rfind("False", 0) != 0) {
    throw failure(path, "not in C order");
  }
  Array array;
  array.dtype = descr.substr(2, 2);
  const std::string shape = after(header, "shape", path);
  size_t at = 1;
  while (at < shape.size() && shape[at] != ')') {
    if (shape[at] < '0' || shape[at] > '9') {
      ++at;
      continue;
    }
    size_t used = 0;
    array.shape.push_back(std::stoll(shape.substr(at), &used));
    at += used;
  }
  const int64_t limit = std::numeric_limits<int64_t>::max() / 16;
  int64_t total = static_cast<int64_t>(item_bytes(array.dtype));
  for (const int64_t size : array.shape) {
    if (size != 0 && total > limit / size) {
      throw failure(path, "an absurd shape");
    }
    total *= size;
  }
  const auto expected = static_cast<uintmax_t>(total) + 10 + length;
  const uintmax_t found = place.size == Place::kRest ? std::filesystem::file_size(path) - place.offset : place.size;
  if (found != expected) {
    throw failure(path, "it has " + std::to_string(found) + " bytes, its shape wants " + std::to_string(expected));
  }
  array.bytes.resize(static_cast<size_t>(total));
  if (!file.read(reinterpret_cast<char*>(array.bytes.data()), total)) {
    throw failure(path, "cannot be read to its end");
  }
  return array;
}

Place find_in_zip(const std::filesystem::path& path, const std::string& ending) {
  // PKWARE's APPNOTE 6.3.10: the end record (4.3.16), the central directory (4.3.12), the local header (4.3.7)
  std::ifstream file(path, std::ios::binary);
  const uintmax_t whole = std::filesystem::file_size(path);
  const auto read = [&](uintmax_t at, uintmax_t length) {
    std::string text(static_cast<size_t>(at + length <= whole ? length : 0), '\0');
    if (text.size() != length || !file.seekg(static_cast<std::streamoff>(at)).read(text.data(), static_cast<std::streamsize>(length))) {
      throw failure(path, "its archive is cut off");
    }
    return text;
  };
  const auto number = [](const std::string& text, size_t at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) {
      value = value << 8 | static_cast<uint8_t>(text.at(at + i));
    }
    return value;
  };
  const uintmax_t tail = std::min<uintmax_t>(whole, 22 + 65535);
  const std::string end = read(whole - tail, tail);
  const size_t last = end.rfind("PK\x05\x06");
  if (last == std::string::npos || end.size() - last < 22) {
    throw failure(path, "not an archive");
  }
  const uint64_t size = std::min<uint64_t>(number(end, last + 12, 4), kDirectoryLimit);
  const std::string directory = read(number(end, last + 16, 4), size);
  for (size_t at = 0; at + 46 <= directory.size() && directory.compare(at, 4, "PK\x01\x02") == 0;) {
    const size_t name_length = number(directory, at + 28, 2);
    const std::string name = directory.substr(at + 46, name_length);
    const bool ends = name.size() >= ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
    if (ends && number(directory, at + 10, 2) == 0) { // stored as it is
      const uint64_t local = number(directory, at + 42, 4);
      const std::string head = read(local, 30);
      return {local + 30 + number(head, 26, 2) + number(head, 28, 2), number(directory, at + 24, 4)};
    }
    at += 46 + name_length + number(directory, at + 30, 2) + number(directory, at + 32, 2);
  }
  throw failure(path, "it holds no " + ending);
}

void write_npy(const Array& array, const std::filesystem::path& path) {
  std::string shape;
  for (const int64_t size : array.shape) {
    shape += std::to_string(size) + ",";
  }
  const std::string order = item_bytes(array.dtype) == 1 ? "|" : "<";
  std::string header = "{'descr': '" + order + array.dtype + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize((header.size() + 1 + 10 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  const std::filesystem::path temporary = path.string() + ".tmp";
  std::ofstream file(temporary, std::ios::binary);
  const char length[2] = {static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  file.write("\x93NUMPY\x01\x00", 8).write(length, 2).write(header.data(), static_cast<std::streamsize>(header.size()));
  file.write(reinterpret_cast<const char*>(array.bytes.data()), static_cast<std::streamsize>(array.bytes.size()));
  file.close();
  if (!file) {
    throw failure(path, "cannot be written: is the disk full?");
  }
  std::filesystem::rename(temporary, path);
}

} // namespace runner
