// Resizing and turning of pictures. Compiled without contraction of products and sums: the weights are those of every machine.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "constants.hpp"
#include "picture.hpp"

namespace runner {
namespace {

constexpr double kReach = 2.0; // of the filter, in pixels
constexpr int kFractionBits = 22;

// The pixels from `first` on that one resized pixel is made of, each with its weight in fixed point.
struct Weights {
  int64_t first = 0;
  std::vector<int32_t> each;
};

double bicubic(double x) { // Keys 1981, a = -1/2
  x = std::abs(x);
  constexpr double a = -0.5;
  if (x < 1) {
    return ((a + 2) * x - (a + 3)) * x * x + 1;
  }
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

std::vector<Weights> weigh(int64_t length, int64_t wanted) {
  const double scale = static_cast<double>(length) / static_cast<double>(wanted);
  const double stretch = std::max(scale, 1.0); // a filter that shrinks covers as many pixels as it replaces
  const double per_pixel = 1.0 / stretch;
  std::vector<Weights> all(static_cast<size_t>(wanted));
  for (int64_t at = 0; at < wanted; ++at) {
    const double center = (static_cast<double>(at) + 0.5) * scale;
    const auto first = std::max<int64_t>(0, static_cast<int64_t>(center - kReach * stretch + 0.5));
    const auto last = std::min<int64_t>(length, static_cast<int64_t>(center + kReach * stretch + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int64_t pixel = first; pixel < last; ++pixel) {
      weights.push_back(bicubic((static_cast<double>(pixel) - center + 0.5) * per_pixel));
      sum += weights.back();
    }
    Weights& one = all[static_cast<size_t>(at)];
    one.first = first;
    for (const double weight : weights) {
      const double fixed = (sum == 0 ? weight : weight / sum) * (1 << kFractionBits);
      one.each.push_back(static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return all;
}

// `lines` lines, `apart` bytes from one to the next, of pixels that are `step` bytes apart, become lines of other pixels.
void resample(
    const uint8_t* from, uint8_t* into, const std::vector<Weights>& weights, int64_t lines, int64_t apart, int64_t into_apart, int64_t step) {
  for (int64_t line = 0; line < lines; ++line) {
    for (size_t at = 0; at < weights.size(); ++at) {
      for (int64_t channel = 0; channel < 3; ++channel) {
        int64_t sum = 1 << (kFractionBits - 1);
        const uint8_t* pixel = from + line * apart + weights[at].first * step + channel;
        for (const int32_t weight : weights[at].each) {
          sum += int64_t{weight} * *pixel;
          pixel += step;
        }
        into[line * into_apart + static_cast<int64_t>(at) * step + channel] =
            static_cast<uint8_t>(std::clamp<int64_t>(sum >> kFractionBits, 0, 255));
      }
    }
  }
}

Picture empty(int64_t width, int64_t height) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3))};
}

Picture with_width(const Picture& picture, int64_t width) {
  if (picture.width == width) {
    return picture;
  }
  Picture made = empty(width, picture.height);
  resample(picture.pixels.data(), made.pixels.data(), weigh(picture.width, width), picture.height, picture.width * 3, width * 3, 3);
  return made;
}

Picture with_height(const Picture& picture, int64_t height) {
  if (picture.height == height) {
    return picture;
  }
  const int64_t row = picture.width * 3;
  Picture made = empty(picture.width, height);
  // a line is a column: its pixels are a row apart
  const std::vector<Weights> weights = weigh(picture.height, height);
  resample(picture.pixels.data(), made.pixels.data(), weights, picture.width, 3, 3, row);
  return made;
}

// As Python's round: half to even. Even, and at least 2.
int64_t even_side(int64_t length, double scale) {
  const auto half = static_cast<int64_t>(std::nearbyint(static_cast<double>(length) * scale / 2));
  return std::min(kFramePx, std::max<int64_t>(2, 2 * half));
}

} // namespace

Picture resized(const Picture& picture, int64_t width, int64_t height) {
  const bool columns_first = height < picture.height && picture.height - height > 2 * (picture.width - width);
  return columns_first ? with_width(with_height(picture, height), width) : with_height(with_width(picture, width), height);
}

Picture turned(const Picture& picture, int64_t orientation) {
  const int64_t width = picture.width, height = picture.height;
  const bool across = orientation >= 5; // rows become columns
  Picture made = across ? empty(height, width) : empty(width, height);
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  uint8_t* into = made.pixels.data();
  for (int64_t y = 0; y < made.height; ++y) {
    for (int64_t x = 0; x < made.width; ++x) {
      const int64_t column = across ? y : x, row = across ? x : y;
      const int64_t from_x = from_right ? width - 1 - column : column;
      const int64_t from_y = from_below ? height - 1 - row : row;
      into = std::copy_n(picture.pixels.data() + (from_y * width + from_x) * 3, 3, into);
    }
  }
  return made;
}

Array framed(const Picture& picture) {
  const double scale = static_cast<double>(kFramePx) / static_cast<double>(std::max(picture.width, picture.height));
  const Picture small = resized(picture, even_side(picture.width, scale), even_side(picture.height, scale));
  Array made{"u1", {3, small.height, small.width}, std::vector<uint8_t>(small.pixels.size())};
  const size_t count = small.pixels.size() / 3;
  for (size_t at = 0; at < small.pixels.size(); ++at) {
    made.bytes[at % 3 * count + at / 3] = small.pixels[at];
  }
  return made;
}

} // namespace runner
