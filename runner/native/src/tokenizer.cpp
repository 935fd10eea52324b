#include "tokenizer.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <queue>
#include <stdexcept>

#include "json.hpp"
#include "utf8.hpp"

namespace runner {
namespace {

// Joins neighbours, the lowest rank first, the leftmost of equals, until none has a rank. Pieces that are `fixed` stay as they are.
std::vector<std::string> merged(std::vector<std::string> parts, const std::vector<bool>& fixed, const Vocabulary& vocabulary) {
  constexpr size_t kNone = ~size_t{0};
  const size_t count = parts.size();
  std::vector<size_t> following(count);
  std::vector<size_t> before(count);
  std::vector<bool> gone(count, false);
  for (size_t at = 0; at < count; ++at) {
    following[at] = at + 1 < count ? at + 1 : kNone;
    before[at] = at > 0 ? at - 1 : kNone;
  }
  const auto rank_at = [&](size_t at) -> std::optional<double> {
    const size_t behind = following[at];
    if (behind == kNone || fixed[at] || fixed[behind]) {
      return std::nullopt;
    }
    return vocabulary.rank(parts[at], parts[behind]);
  };
  using Entry = std::pair<double, size_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap;
  const auto offer = [&](size_t at) {
    if (const auto rank = rank_at(at)) {
      heap.emplace(*rank, at);
    }
  };
  for (size_t at = 0; at < count; ++at) {
    offer(at);
  }
  while (!heap.empty()) {
    const auto [rank, at] = heap.top();
    heap.pop();
    if (gone[at] || rank_at(at) != std::optional<double>(rank)) {
      continue; // one of the two was joined with another neighbour since
    }
    const size_t behind = following[at];
    parts[at] += parts[behind];
    gone[behind] = true;
    following[at] = following[behind];
    if (following[at] != kNone) {
      before[following[at]] = at;
    }
    if (before[at] != kNone) {
      offer(before[at]);
    }
    offer(at);
  }
  std::vector<std::string> left;
  for (size_t at = 0; at < count; ++at) {
    if (!gone[at]) {
      left.push_back(std::move(parts[at]));
    }
  }
  return left;
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path.string() + ": cannot be read");
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void print_list(const char* name, const std::vector<int64_t>& ids) {
  std::printf("\"%s\": [", name);
  for (size_t at = 0; at < ids.size(); ++at) {
    std::printf("%s%lld", at == 0 ? "" : ", ", static_cast<long long>(ids[at]));
  }
  std::printf("]");
}

} // namespace

Tokenizer::Tokenizer(const std::filesystem::path& path) : vocabulary_(read_vocabulary(path)) {}

std::vector<int64_t> Tokenizer::encode(const std::string& text, bool first) const {
  std::vector<int64_t> ids;
  size_t begun = 0;
  for (size_t at = 0; at < text.size() && !vocabulary_.added.empty();) {
    const auto token = std::find_if(vocabulary_.added.begin(), vocabulary_.added.end(), [&](const auto& one) {
      return text.compare(at, one.first.size(), one.first) == 0;
    });
    if (token == vocabulary_.added.end()) {
      ++at;
      continue;
    }
    append_words(ids, text.substr(begun, at - begun), first && begun == 0);
    ids.push_back(token->second);
    at += token->first.size();
    begun = at;
  }
  append_words(ids, text.substr(begun), first && begun == 0);
  return ids;
}

void Tokenizer::append_words(std::vector<int64_t>& ids, const std::string& stretch, bool first) const {
  for (const std::string& word : vocabulary_.spelling.words(stretch, first)) {
    const auto whole = vocabulary_.ids.find(word);
    if (vocabulary_.whole_words && whole != vocabulary_.ids.end()) {
      ids.push_back(whole->second);
    } else {
      append_word(ids, word);
    }
  }
}

void Tokenizer::append_word(std::vector<int64_t>& ids, const std::string& word) const {
  std::vector<std::string> parts;
  std::vector<bool> fixed;
  for (size_t at = 0; at < word.size();) {
    const auto piece = std::find_if(vocabulary_.user_defined.begin(), vocabulary_.user_defined.end(), [&](const std::string& one) {
      return word.compare(at, one.size(), one) == 0;
    });
    fixed.push_back(piece != vocabulary_.user_defined.end());
    parts.push_back(fixed.back() ? *piece : word.substr(at, character_bytes(word, at)));
    at += parts.back().size();
  }
  int64_t last = -1; // within this word
  for (const std::string& part : merged(std::move(parts), fixed, vocabulary_)) {
    const auto found = vocabulary_.ids.find(part);
    if (found != vocabulary_.ids.end()) {
      ids.push_back(last = found->second);
      continue;
    }
    std::vector<int64_t> bytes;
    for (const char byte : part) {
      bytes.push_back(vocabulary_.bytes_ids[static_cast<unsigned char>(byte)]);
    }
    if (std::find(bytes.begin(), bytes.end(), -1) == bytes.end()) {
      ids.insert(ids.end(), bytes.begin(), bytes.end());
      last = bytes.back();
    } else if (vocabulary_.unknown >= 0 && !(vocabulary_.fuse_unknown && last == vocabulary_.unknown)) {
      ids.push_back(last = vocabulary_.unknown);
    }
  }
}

std::string Tokenizer::piece(int64_t id) const {
  const auto found = vocabulary_.spoken.find(id);
  return found == vocabulary_.spoken.end() ? "" : found->second;
}

void print_ids(const std::filesystem::path& tokenizer, const std::filesystem::path& texts) {
  const Tokenizer read(tokenizer);
  const Json asked = Json::parse(read_text(texts));
  for (const Json& text : asked.array()) {
    std::printf("{");
    print_list("start", read.encode(text.string()));
    std::printf(", ");
    print_list("behind", read.encode_behind(text.string()));
    std::printf("}\n");
  }
}

} // namespace runner
