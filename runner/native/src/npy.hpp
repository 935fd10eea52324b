// Arrays on disk in NumPy's format 1.0, little endian, C order: what a bundle holds and a result brings back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace runner {

struct Array {
  std::string dtype; // NumPy's spelling without byte order: f4, i8, u1, ...
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  int64_t count() const;
};

size_t item_bytes(const std::string& dtype); // throws std::runtime_error for a dtype that is not plain numbers

// A part of a file.
struct Place {
  static constexpr uint64_t kRest = ~uint64_t{0};
  uint64_t offset = 0;
  uint64_t size = kRest;
};

Array read_npy(const std::filesystem::path& path, Place place = {}); // throws std::runtime_error that names path and reason
Place find_in_zip(const std::filesystem::path& path, const std::string& ending); // an entry that is stored as it is; throws
void write_npy(const Array& array, const std::filesystem::path& path); // written beside, then renamed

} // namespace runner
