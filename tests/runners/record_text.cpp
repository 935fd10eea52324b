// What `llava_main --record` writes of bytes: each text of stdin, a byte of length in front, as a string of JSON and as its SHA-256.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "json.hpp"
#include "sha256.hpp"

int main() {
  const std::string given((std::istreambuf_iterator<char>(std::cin)), {});
  for (size_t at = 0; at < given.size();) {
    const size_t size = static_cast<unsigned char>(given[at]);
    const std::string text = given.substr(at + 1, size);
    runner::Sha256 sum;
    sum.add(text.data(), size / 2);
    sum.add(text.data() + size / 2, size - size / 2);
    std::printf("%s\n%s\n", runner::quoted(text).c_str(), sum.hex().c_str());
    at += size + 1;
  }
  return 0;
}
