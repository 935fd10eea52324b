#include "calling.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "constants.hpp"

namespace runner {
namespace {

std::string shown(const TensorFacts& facts) {
  std::string text;
  for (const int64_t size : facts.sizes) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return facts.dtype + "[" + text + "]";
}

std::string shown(const char* method, const std::vector<TensorFacts>& inputs) {
  std::string text;
  for (const TensorFacts& facts : inputs) {
    text += (text.empty() ? "" : ", ") + shown(facts);
  }
  return std::string(method) + "(" + text + ")";
}

bool is(const std::vector<TensorFacts>& inputs, size_t at, const char* dtype, size_t dimensions) {
  return at < inputs.size() && inputs[at].dtype == dtype && inputs[at].sizes.size() == dimensions;
}

} // namespace

Calling read_calling(const Program& program) {
  const auto encoder = program.inputs("vision_encoder");
  const auto embedding = program.inputs("token_embedding");
  const auto decoder = program.inputs("text_decoder");
  const bool normalized = is(encoder, 0, "f4", 4);
  if (!(normalized || is(encoder, 0, "u1", 3)) || !is(embedding, 0, "i8", 2) || !is(decoder, 0, "f4", 3) || !is(decoder, 1, "i8", 1)) {
    throw std::runtime_error(
        "the calling convention of the program is not known: " + shown("vision_encoder", encoder) + ", " +
        shown("token_embedding", embedding) + ", " + shown("text_decoder", decoder));
  }
  Calling calling;
  calling.side_px = normalized ? encoder[0].sizes[3] : 0;
  calling.each = decoder[1].sizes[0] != 1;
  calling.text = std::max<int64_t>(1, std::min(embedding[0].sizes[1], decoder[0].sizes[1]));
  return calling;
}

Array Calling::image(const Array& picture) const {
  if (side_px == 0) {
    return picture;
  }
  const int64_t height = picture.shape[1], width = picture.shape[2];
  if (std::max(height, width) > side_px) {
    throw std::runtime_error("the image is larger than the program's frame of " + std::to_string(side_px) + " px");
  }
  const int64_t top = (side_px - height) / 2, left = (side_px - width) / 2;
  std::vector<float> frame;
  frame.reserve(static_cast<size_t>(3 * side_px * side_px));
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t y = -top; y < side_px - top; ++y) {
      for (int64_t x = -left; x < side_px - left; ++x) {
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        const float byte = inside ? picture.bytes[static_cast<size_t>((channel * height + y) * width + x)] : 0.0f;
        frame.push_back((byte * (1.0f / 255.0f) - kPixelMean[channel]) / kPixelStd[channel]);
      }
    }
  }
  Array made{"f4", {1, 3, side_px, side_px}, std::vector<uint8_t>(frame.size() * sizeof(float))};
  std::memcpy(made.bytes.data(), frame.data(), made.bytes.size());
  return made;
}

Array Calling::positions(int64_t start, int64_t tokens) const {
  std::vector<int64_t> places{start};
  for (int64_t at = 1; each && at < tokens; ++at) {
    places.push_back(start + at);
  }
  Array made = ids_array(places);
  made.shape = {static_cast<int64_t>(places.size())};
  return made;
}

Array ids_array(const std::vector<int64_t>& ids) {
  Array made{"i8", {1, static_cast<int64_t>(ids.size())}, std::vector<uint8_t>(ids.size() * sizeof(int64_t))};
  std::memcpy(made.bytes.data(), ids.data(), made.bytes.size());
  return made;
}

} // namespace runner
