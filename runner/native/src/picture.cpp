#include "picture.hpp"

#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "constants.hpp"
#include "stb.hpp"
#include "vocabulary.hpp"

namespace runner {
namespace {

constexpr size_t kDecoderBytesPerPixel = 16; // 16 bits in four channels, and once more while they are widened
constexpr size_t kDecoderBytes = 64 << 20;

std::string read_bounded(const std::filesystem::path& path) {
  if (std::filesystem::file_size(path) > static_cast<uintmax_t>(kPictureLimitBytes)) {
    throw std::runtime_error("the file is larger than " + std::to_string(kPictureLimitBytes) + " bytes; scale the picture down");
  }
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

} // namespace

Picture decode_picture(const std::string& data) {
  const PictureFile file = check_picture(data);
  bound_stb_memory(kDecoderBytes + kDecoderBytesPerPixel * static_cast<size_t>(file.width * file.height));
  int width = 0, height = 0, channels = 0;
  const auto* bytes = reinterpret_cast<const stbi_uc*>(file.checked.data());
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
      stbi_load_from_memory(bytes, static_cast<int>(file.checked.size()), &width, &height, &channels, 3), &stbi_image_free);
  if (pixels == nullptr) {
    throw std::runtime_error(std::string("the picture cannot be read: ") + stbi_failure_reason() + "; save it again as 8-bit PNG or JPEG");
  }
  if (width != file.width || height != file.height) {
    throw std::runtime_error("the picture cannot be read: it has two sizes; save it again");
  }
  const size_t count = static_cast<size_t>(width) * static_cast<size_t>(height) * 3;
  Picture picture{width, height, std::vector<uint8_t>(pixels.get(), pixels.get() + count)};
  return file.orientation >= 2 && file.orientation <= 8 ? turned(picture, file.orientation) : picture;
}

Array read_picture(const std::filesystem::path& path) {
  try {
    const std::string data = read_bounded(path);
    const bool picture = data.compare(0, 2, "\xff\xd8") == 0 || data.compare(0, 4, "\x89PNG") == 0;
    if (!picture) {
      throw std::runtime_error(
          "neither a JPEG nor a PNG picture, but " + describe(data.substr(0, 4096)) +
          "; convert it, or: python -m verifier.image_util --image-path PICTURE --output-path image.npy");
    }
    return framed(decode_picture(data));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

} // namespace runner
