#include "chat.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "calling.hpp"
#include "constants.hpp"
#include "engine.hpp"
#include "picture.hpp"
#include "record.hpp"
#include "tokenizer.hpp"

namespace runner {
namespace {

using Clock = std::chrono::steady_clock;

Array read_image(const std::filesystem::path& path) {
  if (path.empty() || !std::filesystem::is_regular_file(path)) {
    throw std::runtime_error("no such image: " + path.string());
  }
  if (path.extension() != ".pt" && path.extension() != ".npy") {
    return read_picture(path);
  }
  // TorchScript is an archive, and verifier.image_util puts the plain array into it too: upstream's script does not
  Array image;
  try {
    image = read_npy(path, path.extension() == ".pt" ? find_in_zip(path, std::string("/extra/") + kImageEntry) : Place{});
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(
        std::string(error.what()) + "; write it again: python -m verifier.image_util --image-path PICTURE --output-path image.npy");
  }
  if (image.dtype != "u1" || image.shape.size() != 3 || image.shape[0] != 3) {
    throw std::runtime_error(path.string() + ": not an image of uint8 [3, h, w]");
  }
  return image;
}

class Conversation {
 public:
  Conversation(const Question& question)
      : tokenizer_(question.tokenizer),
        program_(checked(question.model), 0, load_mode(question.load_mode)),
        temperature_(question.temperature),
        random_(question.seed) {
    if (program_.loaded != executorch::runtime::Error::Ok) {
      throw std::runtime_error(question.model.string() + ": not a program of this runtime, error " + error_text(program_.loaded));
    }
    try {
      limit_ = std::min(question.seq_len, to_number(program_.call("get_max_seq_len", {})));
      read_ends();
      calling_ = read_calling(program_);
    } catch (const CallError& error) {
      throw std::runtime_error(question.model.string() + ": not a program of this runtime, or no LLaVA: " + error.what);
    }
  }

  // Prints prompt and answer; `asked` keeps them, also where an exception ends it.
  void run(const Array& image, const std::string& prompt, Asked& asked) {
    std::printf("%s", prompt.c_str());
    std::fflush(stdout);
    const Clock::time_point begun = Clock::now();
    asked.before = tokenizer_.encode(kBeforeImage);
    asked.before.insert(asked.before.begin(), tokenizer_.bos());
    asked.after = tokenizer_.encode_behind(prompt);
    asked.begun = true;
    const std::vector<int64_t>&before = asked.before, &after = asked.after;
    const Array seen = to_array(program_.call("vision_encoder", {calling_.image(image)}).at(0));
    // now, and not behind minutes of prefill
    need(static_cast<int64_t>(before.size() + after.size()) + seen.shape.at(1));
    read(before);
    feed(seen);
    Array logits = read(after);
    const double prefill_s = std::chrono::duration<double>(Clock::now() - begun).count();
    asked.prompt_tokens = position_;
    const Clock::time_point decoding = Clock::now();
    int64_t spoken = 0;
    for (;;) {
      const int64_t token = choose(logits);
      asked.answer.push_back(token);
      if (ends(token)) {
        break;
      }
      const std::string piece = tokenizer_.piece(token);
      asked.said += piece;
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
      ++spoken;
      if (position_ == limit_) {
        break;
      }
      logits = read({token});
    }
    const double decode_s = std::chrono::duration<double>(Clock::now() - decoding).count();
    std::printf("\n");
    std::fprintf(
        stderr, "prefill %.2f s (%lld tokens), decode %.1f tokens/s (%lld tokens)\n", prefill_s,
        static_cast<long long>(asked.prompt_tokens), decode_s > 0 ? static_cast<double>(spoken) / decode_s : 0.0, static_cast<long long>(spoken));
  }

 private:
  static const std::filesystem::path& checked(const std::filesystem::path& path) {
    if (!std::filesystem::is_regular_file(path)) {
      throw std::runtime_error("no such program: " + path.string());
    }
    return path;
  }

  static int64_t to_number(const std::vector<executorch::runtime::EValue>& values) {
    if (values.size() != 1 || !values[0].isInt()) {
      throw std::runtime_error("get_max_seq_len does not give a number");
    }
    return values[0].toInt();
  }

  // Ids that end an answer, as the program says; the tokenizer's if it does not.
  void read_ends() {
    ends_ = tokenizer_.eos();
    if (program_.has("get_eos_ids")) {
      ends_.clear();
      for (const auto& id : program_.call("get_eos_ids", {})) {
        if (!id.isInt()) {
          throw std::runtime_error("get_eos_ids does not give numbers");
        }
        ends_.push_back(id.toInt());
      }
    }
  }

  bool ends(int64_t token) const { return std::find(ends_.begin(), ends_.end(), token) != ends_.end(); }

  void need(int64_t positions) const {
    if (positions > limit_) {
      throw std::runtime_error("the prompt needs " + std::to_string(positions) + " positions, there are " + std::to_string(limit_));
    }
  }

  // Logits behind some text, which goes in in pieces if it is too long for one call.
  Array read(const std::vector<int64_t>& ids) {
    if (ids.empty()) {
      throw std::runtime_error("there is no text");
    }
    Array logits;
    for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(calling_.text)) {
      const size_t end = std::min(ids.size(), at + static_cast<size_t>(calling_.text));
      const std::vector<int64_t> piece(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.begin() + static_cast<std::ptrdiff_t>(end));
      logits = feed(to_array(program_.call("token_embedding", {ids_array(piece)}).at(0)));
    }
    return logits;
  }

  // Logits of the last token, [1, V].
  Array feed(const Array& embeddings) {
    const int64_t tokens = embeddings.shape.at(1);
    need(position_ + tokens);
    const auto answer = program_.call("text_decoder", {embeddings, calling_.positions(position_, tokens)});
    position_ += tokens;
    return last_row(to_array(answer.at(0)));
  }

  int64_t choose(const Array& logits) {
    if (temperature_ == 0) {
      return argmax(logits);
    }
    const int64_t width = logits.shape.back();
    const auto* last = reinterpret_cast<const float*>(logits.bytes.data()) + (logits.count() - width);
    const float largest = *std::max_element(last, last + width);
    std::vector<double> weights;
    for (int64_t id = 0; id < width; ++id) {
      weights.push_back(std::exp((last[id] - largest) / temperature_));
    }
    return std::discrete_distribution<int64_t>(weights.begin(), weights.end())(random_);
  }

  Tokenizer tokenizer_;
  Program program_;
  Calling calling_;
  float temperature_;
  std::mt19937 random_;
  std::vector<int64_t> ends_;
  int64_t limit_ = 0;
  int64_t position_ = 0;
};

} // namespace

int answer(const Question& question) {
  std::optional<SessionFile> session;
  if (!question.record.empty()) {
    session.emplace(question.record, question.model, question.tokenizer);
  }
  const Array image = read_image(question.image);
  if (!question.save_image.empty()) {
    write_npy(image, question.save_image);
    return 0;
  }
  Asked asked;
  asked.prompt = question.prompt;
  asked.picture = question.image;
  asked.temperature = question.temperature;
  asked.seq_len = question.seq_len;
  const auto record = [&](const std::string& error) {
    if (session && asked.begun) {
      session->append(asked, image, error);
    }
  };
  try {
    Conversation(question).run(image, question.prompt, asked);
  } catch (const CallError& error) {
    std::fprintf(stderr, "\nllava_main: %s\n", error.what.c_str());
    record(error.what);
    return 1;
  } catch (const std::runtime_error& error) {
    record(error.what());
    throw;
  }
  record("");
  return 0;
}

} // namespace runner
