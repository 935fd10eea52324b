// llava_main: ExecuTorch's LLaVA without Python. Answers a prompt about an image, or carries out a bundle for the verifier.
//
// Exit status: 0 done, 1 the program failed, 2 bad usage or an input that cannot be read. A `.pte` that aborts the runtime
// takes the process with it.

#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <string>

#include <executorch/runtime/platform/runtime.h>

#include "chat.hpp"
#include "engine.hpp"
#include "kernels.hpp"
#include "session.hpp"
#include "tokenizer.hpp"

namespace {

constexpr const char* kUsage =
    "usage: llava_main --model_path=llava.pte --tokenizer_path=tokenizer.bin --image_path=photo.jpg [--prompt=ASSISTANT:]\n"
    "                  [--seq_len=768] [--temperature=0] [--seed=0] [--cpu_threads=N] [--workspace_sharing=MODE]\n"
    "                  [--load_mode=mmap|file] [--record=session.jsonl]\n"
    "       llava_main --image_path=photo.jpg --save_image=image.npy\n"
    "       llava_main --bundle=FOLDER --result=FOLDER [--model_path=llava.pte]\n"
    "       llava_main --tokenize=TEXTS --tokenizer_path=tokenizer.bin\n"
    "       llava_main --about\n"
    "The image is a JPEG or PNG, turned upright by its orientation tag and resized as python -m verifier.image_util does it, or uint8\n"
    "[3, h, w] as that writes it, .npy or .pt. --save_image writes what the program would be given.\n"
    "The tokenizer is a tokenizer.bin, .model (SentencePiece) or .json (Hugging Face), whatever its name. --tokenize prints the ids of\n"
    "each text of a JSON list.\n"
    "XNNPACK's workspaces: MODE disabled is one for each delegate, per_model one for each file, global (default) one for all.\n"
    "Constants are mapped (mmap, default): only what is touched takes memory; or copied (file).\n"
    "--record appends what was fed and answered, for python -m verifier.session.\n"
    "A bundle is what runner/bundle.py writes. --about prints the machine and its kernels as JSON.\n";

// `--name=value` and `--name value`. Throws std::runtime_error for a flag that is not known or has no value.
std::map<std::string, std::string> read_flags(int count, char** words, const std::map<std::string, std::string>& defaults) {
  std::map<std::string, std::string> flags = defaults;
  for (int at = 1; at < count; ++at) {
    const std::string word = words[at];
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    if (defaults.find(name) == defaults.end()) {
      throw std::runtime_error("unknown flag " + name);
    }
    if (equals == std::string::npos && at + 1 == count) {
      throw std::runtime_error(name + " has no value");
    }
    flags[name] = equals == std::string::npos ? words[++at] : word.substr(equals + 1);
  }
  return flags;
}

template <typename T>
T number(const std::map<std::string, std::string>& flags, const std::string& name, double low, double high) {
  const std::string& text = flags.at(name);
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (text.empty() || used != text.size() || !(value >= low && value <= high)) {
    throw std::runtime_error(name + " is " + text + ", expected a number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<T>(value);
}

int run(int count, char** words) {
  const std::map<std::string, std::string> defaults = {
      {"--model_path", ""},          {"--tokenizer_path", "tokenizer.bin"}, {"--image_path", ""}, {"--prompt", "ASSISTANT:"},
      {"--seq_len", "768"},          {"--temperature", "0"},                {"--seed", "0"},      {"--cpu_threads", "0"},
      {"--bundle", ""},              {"--result", ""},                     {"--workspace_sharing", ""},
      {"--load_mode", "mmap"},       {"--tokenize", ""},                   {"--save_image", ""},
      {"--record", ""}};
  const auto flags = read_flags(count, words, defaults);
  const auto threads = number<uint32_t>(flags, "--cpu_threads", 0, 1024);
  if (threads != 0) {
    runner::set_threads(threads);
    runner::kernel_threads() = threads;
  }
  for (const char* other : {"--bundle", "--tokenize", "--save_image"}) {
    if (!flags.at("--record").empty() && !flags.at(other).empty()) {
      throw std::runtime_error(std::string("--record keeps an answer, and ") + other + " gives none: leave one of them out");
    }
  }
  if (!flags.at("--workspace_sharing").empty()) {
    runner::set_workspace_sharing(flags.at("--workspace_sharing"));
  }
  if (!flags.at("--bundle").empty()) {
    if (!std::filesystem::is_directory(flags.at("--result"))) {
      throw std::runtime_error("--result is " + flags.at("--result") + ", expected an existing folder");
    }
    return runner::carry_out(flags.at("--bundle"), flags.at("--result"), flags.at("--model_path"));
  }
  if (!flags.at("--tokenize").empty()) {
    runner::print_ids(flags.at("--tokenizer_path"), flags.at("--tokenize"));
    return 0;
  }
  runner::Question question;
  question.model = flags.at("--model_path").empty() ? "llava.pte" : flags.at("--model_path");
  question.tokenizer = flags.at("--tokenizer_path");
  question.image = flags.at("--image_path");
  question.save_image = flags.at("--save_image");
  question.record = flags.at("--record");
  question.prompt = flags.at("--prompt");
  question.seq_len = number<int64_t>(flags, "--seq_len", 1, 1 << 20);
  question.temperature = number<float>(flags, "--temperature", 0, 100);
  question.seed = number<uint32_t>(flags, "--seed", 0, 4294967295.0);
  question.load_mode = flags.at("--load_mode");
  return runner::answer(question);
}

} // namespace

int main(int count, char** words) {
  if (count == 1 || (count == 2 && std::string(words[1]) == "--help")) {
    std::fprintf(count == 1 ? stderr : stdout, "%s", kUsage);
    return count == 1 ? 2 : 0;
  }
  executorch::runtime::runtime_init();
  if (runner::register_llama_kernels() != executorch::runtime::Error::Ok) {
    std::fprintf(stderr, "llava_main: the llama kernels cannot be registered\n");
    return 2;
  }
  if (count == 2 && std::string(words[1]) == "--about") {
    runner::print_machine();
    return 0;
  }
  try {
    return run(count, words);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llava_main: %s\n%s", error.what(), kUsage);
    return 2;
  }
}
