#include "bundle.hpp"

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "constants.hpp"

namespace runner {
namespace {

template <typename T>
T number(std::istringstream& words) {
  T value{};
  if (!(words >> value)) {
    throw std::runtime_error("a number is missing");
  }
  return value;
}

std::string rest(std::istringstream& words) {
  std::string text;
  std::getline(words >> std::ws, text);
  if (text.empty()) {
    throw std::runtime_error("a name is missing");
  }
  return text;
}

Input read_input(std::istringstream& words, const std::filesystem::path& folder, size_t calls) {
  std::string kind;
  words >> kind;
  Input input{};
  if (kind == "array") {
    const std::filesystem::path name = rest(words);
    if (name.has_parent_path()) {
      throw std::runtime_error("an array outside the bundle");
    }
    input.kind = Input::Kind::array;
    input.file = folder / name;
    return input;
  }
  if (kind != "output" && kind != "argmax") {
    throw std::runtime_error("an input of kind " + kind);
  }
  input.kind = kind == "output" ? Input::Kind::output : Input::Kind::argmax;
  input.call = number<size_t>(words);
  input.output = kind == "output" ? number<size_t>(words) : 0;
  if (input.call + 1 >= calls) {
    throw std::runtime_error("a call uses an output that does not exist yet");
  }
  return input;
}

void read_line(const std::string& line, const std::filesystem::path& folder, Bundle& bundle, uintmax_t& size_bytes) {
  std::istringstream words(line);
  std::string key;
  words >> key;
  if (key == "pte") {
    std::string hash;
    words >> hash;
    size_bytes = number<uintmax_t>(words);
    bundle.pte = folder / rest(words);
  } else if (key == "threads") {
    bundle.threads = number<uint32_t>(words);
  } else if (key == "trace") {
    bundle.trace_bytes = number<size_t>(words);
  } else if (key == "memory") {
    number<size_t>(words); // whoever starts this process limits it
  } else if (key == "call") {
    Call call{};
    call.keep = number<int>(words) != 0;
    call.may_fail = number<int>(words) != 0;
    call.instance = number<size_t>(words);
    call.method = rest(words);
    bundle.calls.push_back(std::move(call));
  } else if (key == "in" && !bundle.calls.empty()) {
    bundle.calls.back().inputs.push_back(read_input(words, folder, bundle.calls.size()));
  } else if (key == "part" && !bundle.calls.empty()) {
    const auto output = number<size_t>(words);
    const auto axis = number<size_t>(words);
    bundle.calls.back().parts.push_back(Part{output, axis, number<int64_t>(words)});
  } else if (key == "rows" && !bundle.calls.empty() && rest(words) == "last") {
    bundle.calls.back().last_row = true;
  } else {
    throw std::runtime_error("an item of kind " + key);
  }
}

} // namespace

Bundle read_bundle(const std::filesystem::path& folder, const std::filesystem::path& pte) {
  const std::filesystem::path path = folder / kBundleFile;
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != kBundleSchema) {
    throw std::runtime_error(path.string() + ": not a bundle of schema " + kBundleSchema);
  }
  Bundle bundle;
  uintmax_t size_bytes = 0;
  for (int at = 2; std::getline(file, line); ++at) {
    try {
      read_line(line, folder, bundle, size_bytes);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path.string() + ", line " + std::to_string(at) + ": " + error.what());
    }
  }
  if (bundle.pte.empty()) {
    throw std::runtime_error(path.string() + ": it names no program");
  }
  if (!pte.empty()) {
    bundle.pte = pte;
  }
  std::error_code problem;
  const uintmax_t found = std::filesystem::file_size(bundle.pte, problem);
  if (problem) {
    throw std::runtime_error(bundle.pte.string() + ": the bundle's program is not there: " + problem.message());
  }
  if (found != size_bytes) {
    throw std::runtime_error(
        bundle.pte.string() + ": not the bundle's program: it has " + std::to_string(found) + " bytes, expected " + std::to_string(size_bytes));
  }
  return bundle;
}

} // namespace runner
