// stb_image's decoders, compiled once, with memory that is bounded and cleared.
#include <cstdlib>

namespace {

size_t largest_bytes = 0;

// Cleared: a damaged file can leave parts of a picture undecoded, and they must not show what memory held before.
void* allocate(size_t bytes) { return bytes > largest_bytes ? nullptr : std::calloc(1, bytes == 0 ? 1 : bytes); }

void* reallocate(void* memory, size_t bytes) { return bytes > largest_bytes ? nullptr : std::realloc(memory, bytes == 0 ? 1 : bytes); }

} // namespace

#define STBI_MALLOC(size) allocate(size)
#define STBI_REALLOC(memory, size) reallocate(memory, size)
#define STBI_FREE(memory) std::free(memory)
#define STB_IMAGE_IMPLEMENTATION
#include "stb.hpp"

namespace runner {

void bound_stb_memory(size_t bytes) { largest_bytes = bytes; }

} // namespace runner
