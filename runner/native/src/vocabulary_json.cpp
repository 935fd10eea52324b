// tokenizer.json of Hugging Face, as far as Llama's tokenizers use it; runner/tokenizer_json.py has the same.
#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "constants.hpp"
#include "json.hpp"
#include "vocabulary.hpp"

namespace runner {
namespace {

constexpr size_t kAddedLimit = 4096;
// Names of special tokens, for what the file does not say. A program that has `get_eos_ids` is asked first.
const std::vector<std::string> kBos = {"<s>", "<bos>", "<|begin_of_text|>"};
const std::vector<std::string> kEos = {"</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>"};

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("a tokenizer.json with " + what + ", which is not supported");
}

[[noreturn]] void damaged(const std::string& what) {
  throw std::runtime_error("a damaged tokenizer.json: " + what);
}

int64_t id_of(const Json& number) {
  const auto id = number.integer();
  if (!id || *id < 0 || *id >= kIdLimit) {
    damaged("the id " + number.text.substr(0, 40));
  }
  return *id;
}

bool given(const Json* value) {
  return value != nullptr && !value->is(Json::Kind::null);
}

bool truthy(const Json& object, const std::string& key) {
  const Json* value = object.find(key);
  return value != nullptr && value->truthy();
}

// What a JSON file is that is no tokenizer.json.
std::string other_json(const Json& root) {
  if (!root.is(Json::Kind::object)) {
    return "JSON, but no tokenizer.json";
  }
  const std::vector<std::pair<std::vector<std::string>, std::string>> kinds = {
      {{"tokenizer_class"}, "a tokenizer_config.json"},
      {{"model_type"}, "a config.json"},
      {{"image_processor"}, "a processor_config.json"},
      {{"image_mean"}, "a preprocessor_config.json"},
      {{"config", "vocab", "special_tokens"}, "a tekken.json, which is not supported"},
      {{"weight_map"}, "an index of weights"},
      {{"bos_token"}, "a special_tokens_map.json"},
      {{"eos_token_id"}, "a generation_config.json"}};
  for (const auto& [keys, kind] : kinds) {
    if (std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return root.find(key) != nullptr; })) {
      return kind;
    }
  }
  const bool numbers = std::all_of(root.members.begin(), root.members.end(), [](const auto& m) { return m.second.integer().has_value(); });
  return !root.members.empty() && numbers ? "a vocab.json, without merges" : "JSON, but no tokenizer.json: it has no model";
}

void normalizer_steps(const Json* data, Spelling& spelling, bool nested) {
  if (!given(data)) {
    return;
  }
  const std::string& kind = data->at("type").string();
  const Json* pattern = data->find("pattern");
  const Json* old = pattern == nullptr ? nullptr : pattern->find("String");
  if (kind == "Sequence") {
    if (nested) {
      throw std::runtime_error("a tokenizer.json with nested normalizers, which are not supported");
    }
    for (const Json& one : data->at("normalizers").array()) {
      normalizer_steps(&one, spelling, true);
    }
  } else if (kind == "Prepend") {
    spelling.steps.emplace_back("", data->at("prepend").string());
  } else if (kind == "Replace" && old != nullptr && old->truthy()) {
    spelling.steps.emplace_back(old->string(), data->at("content").string());
  } else {
    refuse("the normalizer " + kind);
  }
}

Spelling read_spelling(const Json* normalizer, const Json* pre_tokenizer) {
  Spelling made;
  made.blank = kBlank;
  normalizer_steps(normalizer, made, false);
  if (!given(pre_tokenizer)) {
    return made;
  }
  if (pre_tokenizer->at("type").string() == "Sequence" && pre_tokenizer->at("pretokenizers").array().size() == 1) {
    pre_tokenizer = &pre_tokenizer->at("pretokenizers").array()[0];
  }
  if (pre_tokenizer->at("type").string() != "Metaspace") {
    refuse("the pre-tokenizer " + pre_tokenizer->at("type").string());
  }
  const Json* prefix = pre_tokenizer->find("add_prefix_space"); // before `prepend_scheme` there was this switch
  const Json* scheme = pre_tokenizer->find("prepend_scheme");
  made.scheme = scheme != nullptr ? scheme->string() : prefix == nullptr || prefix->truthy() ? "always" : "never";
  if (made.scheme != "always" && made.scheme != "first" && made.scheme != "never") {
    throw std::runtime_error("a tokenizer.json with the prepend_scheme " + made.scheme.substr(0, 40) + ", which is not known");
  }
  const Json* blank = pre_tokenizer->find("replacement");
  made.blank = blank == nullptr ? kBlank : blank->string();
  const auto leads = std::count_if(made.blank.begin(), made.blank.end(), [](char c) { return (c & 0xC0) != 0x80; });
  if (leads != 1) {
    damaged("Metaspace's replacement is not one character");
  }
  const Json* split = pre_tokenizer->find("split");
  made.split = split == nullptr || split->truthy();
  return made;
}

void read_merges(const Json& merges, Vocabulary& made) {
  double rank = 0;
  for (const Json& merge : merges.array()) {
    std::string left;
    std::string right;
    if (merge.is(Json::Kind::string)) {
      const size_t blank = merge.text.find(' ');
      if (blank == std::string::npos || merge.text.find(' ', blank + 1) != std::string::npos) {
        damaged("a merge is not two pieces");
      }
      left = merge.text.substr(0, blank);
      right = merge.text.substr(blank + 1);
    } else {
      if (merge.array().size() != 2) {
        damaged("a merge is not two pieces");
      }
      left = merge.items[0].string();
      right = merge.items[1].string();
    }
    const std::string number = std::to_string(static_cast<int64_t>(rank));
    if (made.ids.count(left) == 0 || made.ids.count(right) == 0 || made.ids.count(left + right) == 0) {
      damaged("merge " + number + " has pieces that are not in its vocabulary");
    }
    if (byte_of(left) || byte_of(right)) {
      refuse("merges of byte pieces (merge " + number + ")");
    }
    made.ranks[left + '\xFF' + right] = rank++; // of equal ones the last counts, as in Hugging Face's reader
  }
  made.by_rank = true;
}

// Added tokens that are no special ones say what they are, special ones say nothing.
void read_added(const Json& root, Vocabulary& made, std::unordered_map<std::string, int64_t>& named) {
  const Json* added = root.find("added_tokens");
  if (!given(added)) {
    return;
  }
  for (const Json& token : added->array()) {
    const std::string& content = token.at("content").string();
    const int64_t id = id_of(token.at("id"));
    if (truthy(token, "special")) {
      made.spoken[id] = "";
      named[content] = id;
      continue;
    }
    const bool flagged = truthy(token, "lstrip") || truthy(token, "rstrip") || truthy(token, "single_word") ||
        (truthy(token, "normalized") && !made.spelling.steps.empty());
    if (flagged || content.empty() || made.added.size() == kAddedLimit) {
      refuse("the added token '" + content.substr(0, 40) + "' (its flags, or one of too many)");
    }
    made.spoken[id] = content;
    made.added.emplace_back(content, id);
  }
  std::sort(made.added.begin(), made.added.end(), [](const auto& a, const auto& b) {
    return a.first.size() != b.first.size() ? a.first.size() > b.first.size() : a.first < b.first;
  });
}

// The one token that the post-processor puts before a text; -1 if there is none.
int64_t template_bos(const Json* data) {
  if (!given(data)) {
    return -1;
  }
  if (data->at("type").string() == "Sequence") {
    for (const Json& one : data->at("processors").array()) {
      const int64_t bos = one.at("type").string() == "TemplateProcessing" ? template_bos(&one) : -1;
      if (bos >= 0) {
        return bos;
      }
    }
    return -1;
  }
  if (data->at("type").string() != "TemplateProcessing") {
    return -1;
  }
  std::vector<int64_t> before;
  for (const Json& item : data->at("single").array()) {
    const Json* token = item.find("SpecialToken");
    if (token == nullptr) {
      return before.size() == 1 ? before[0] : -1;
    }
    for (const Json& id : data->at("special_tokens").at(token->at("id").string()).at("ids").array()) {
      before.push_back(id_of(id));
    }
  }
  return -1;
}

} // namespace

Vocabulary parse_json(const std::string& data) {
  const Json root = Json::parse(data);
  const Json* model = root.find("model");
  if (model == nullptr || !model->is(Json::Kind::object)) {
    throw std::runtime_error(other_json(root));
  }
  const Json* type = model->find("type");
  const Json* vocab = model->find("vocab");
  const std::string kind = type != nullptr && type->is(Json::Kind::string) ? type->text : type == nullptr && model->find("merges") != nullptr ? "BPE" : "nameless";
  if (kind != "BPE" || vocab == nullptr || !vocab->is(Json::Kind::object)) {
    throw std::runtime_error("a tokenizer.json with a " + kind + " model: BPE is supported");
  }
  for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    if (truthy(*model, name)) {
      refuse(name);
    }
  }
  const Json& merges = model->at("merges");
  if (vocab->members.size() > kVocabularyLimit || merges.array().size() > kVocabularyLimit) {
    throw std::runtime_error("a tokenizer.json of more than " + std::to_string(kVocabularyLimit) + " pieces or merges");
  }
  Vocabulary made;
  for (const auto& [piece, number] : vocab->members) {
    if (piece.size() > kPieceLimitBytes) {
      throw std::runtime_error("a tokenizer.json with a piece of more than " + std::to_string(kPieceLimitBytes) + " bytes");
    }
    made.ids[piece] = id_of(number);
  }
  read_merges(merges, made);
  made.spelling = read_spelling(root.find("normalizer"), root.find("pre_tokenizer"));
  for (const auto& [piece, id] : made.ids) {
    made.spoken[id] = said(piece, made.spelling.blank);
  }
  std::unordered_map<std::string, int64_t> named;
  read_added(root, made, named);
  const Json* unknown = model->find("unk_token");
  if (given(unknown)) {
    const auto found = made.ids.find(unknown->string());
    if (found == made.ids.end()) {
      damaged("unk_token is not in its vocabulary");
    }
    made.unknown = found->second;
  }
  made.fuse_unknown = truthy(*model, "fuse_unk");
  made.whole_words = truthy(*model, "ignore_merges");
  for (int byte = 0; truthy(*model, "byte_fallback") && byte < 256; ++byte) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", byte);
    const auto found = made.ids.find(piece);
    made.bytes_ids[static_cast<size_t>(byte)] = found == made.ids.end() ? -1 : found->second;
  }
  made.bos = template_bos(root.find("post_processor"));
  for (const std::string& name : kBos) {
    if (made.bos < 0 && named.count(name) != 0) {
      made.bos = named[name];
    }
  }
  if (made.bos < 0) {
    throw std::runtime_error("a tokenizer.json that names no BOS, neither in its post-processor nor as an added token");
  }
  for (const std::string& name : kEos) {
    if (named.count(name) != 0) {
      made.eos.push_back(named[name]);
    }
  }
  return made;
}

} // namespace runner
