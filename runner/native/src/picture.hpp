// A JPEG or PNG file as upright RGB pixels in the program's frame: what verifier/families/pixels/image_file.py and python -m
// verifier.image_util do in Python.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "npy.hpp"

namespace runner {

struct Picture {
  int64_t width = 0;
  int64_t height = 0;
  std::vector<uint8_t> pixels; // RGB, row by row
};

// What the decoder is to read, and the orientation tag: 1 to 8, anything else stands for 1.
struct PictureFile {
  int64_t width = 0;
  int64_t height = 0;
  int64_t orientation = 1;
  std::string checked; // the file; of a PNG its header, palette and pixels alone
};

// Everything below throws std::runtime_error that says what is wrong with the file.
PictureFile check_picture(const std::string& data); // its structure, and its size before anything is decoded
int64_t exif_orientation(std::string_view exif); // TIFF, with or without "Exif\0\0" in front; 0 if it names none
int64_t xmp_orientation(std::string_view xmp); // 0 if it names none
Picture decode_picture(const std::string& data); // upright
Picture turned(const Picture& picture, int64_t orientation);
// Bicubic, with the weights, the rounding and the order of passes of Pillow 13.
Picture resized(const Picture& picture, int64_t width, int64_t height);
Array framed(const Picture& picture); // u1 [3, h, w]: the longer side kFramePx, both even
Array read_picture(const std::filesystem::path& path); // all of it

} // namespace runner
