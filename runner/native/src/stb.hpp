// stb_image's interface as it is compiled in stb.cpp: pictures in memory, JPEG and PNG.
#pragma once

#include <cstddef>

#define STBI_NO_STDIO
#define STBI_NO_SIMD // every machine computes the same pixels
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#include <stb_image.h>

namespace runner {

void bound_stb_memory(size_t bytes); // of a single piece, for the decoding that follows in this process

} // namespace runner
