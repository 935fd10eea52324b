// JSON as a tree, for tokenizer.json, and strings of JSON: strict, of bounded depth, numbers kept as their text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace runner {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Throws std::runtime_error for what is no JSON, or nested deeper than 200 levels.
  static Json parse(const std::string& text);

  Kind kind = Kind::null;
  bool truth = false;
  std::string text; // of a string, as UTF-8; of a number, as it is written
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members; // in their order; of equal keys the last one counts

  const Json* find(const std::string& key) const; // nullptr if there is none, or if this is no object
  const Json& at(const std::string& key) const; // throws std::runtime_error that names the key
  bool is(Kind wanted) const { return kind == wanted; }
  bool truthy() const; // as Python has it: not null, false, 0, "" or empty
  std::optional<int64_t> integer() const; // of a number without fraction or exponent
  const std::string& string() const; // throws std::runtime_error if it is none
  const std::vector<Json>& array() const; // throws std::runtime_error if it is none
};

// A string of JSON in ASCII, quotes included, as Python's json.dumps writes it; U+FFFD stands for bytes that are no UTF-8.
std::string quoted(const std::string& text);

} // namespace runner
