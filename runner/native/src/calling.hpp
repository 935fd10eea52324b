// How a program is called, by what its methods declare: what runner/calling.py does in Python.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"
#include "npy.hpp"

namespace runner {

// ExecuTorch's own LLaVA takes a picture's bytes and the position where a chunk starts; optimum-executorch's programs take normalized
// pixels and the position of each token.
struct Calling {
  int64_t side_px = 0; // of the frame of normalized pixels; 0 for a program that takes bytes
  bool each = false; // whether each token is given its position, or a chunk the one of its start
  int64_t text = 1; // tokens of text that one call takes

  // What `vision_encoder` is given for a picture u1 [3, h, w]: the picture, or f4 [1, 3, H, H], centred on black and normalized. Throws
  // std::runtime_error for a picture that is larger than the frame.
  Array image(const Array& picture) const;
  Array positions(int64_t start, int64_t tokens) const; // i8 [1] or [S]
};

// From the inputs that a program declares. Throws std::runtime_error for a convention that is not known, CallError for what is no LLaVA.
Calling read_calling(const Program& program);

Array ids_array(const std::vector<int64_t>& ids); // i8 [1, S]

} // namespace runner
