#include "session.hpp"

#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>

#include <executorch/runtime/kernel/operator_registry.h>

#include "bundle.hpp"
#include "constants.hpp"
#include "cpu.hpp"
#include "engine.hpp"
#include "json.hpp"
#include "kernels.hpp"
#include "npy.hpp"

namespace runner {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

template <typename Items, typename Write>
std::string listed(const Items& items, Write write) {
  std::string text;
  for (const auto& item : items) {
    text += (text.empty() ? "" : ", ") + write(item);
  }
  return text;
}

template <typename Items>
std::string words(const Items& items) {
  return "[" + listed(items, [](const auto& item) { return quoted(item); }) + "]";
}

std::string named(const std::map<std::string, std::string>& items) {
  return "{" + listed(items, [](const auto& item) { return quoted(item.first) + ": " + quoted(item.second); }) + "}";
}

std::string named(const std::map<std::string, double>& items) {
  return "{" + listed(items, [](const auto& item) { return quoted(item.first) + ": " + std::to_string(item.second); }) + "}";
}

// The machine and what it brings along: fields of `runner/protocol.py`'s Result.
std::string machine() {
  std::vector<std::string> operators;
  for (const auto& kernel : executorch::runtime::get_registered_kernels()) {
    operators.emplace_back(kernel.name_);
  }
  return "\"isa\": " + quoted(isa()) + ", \"cpu_features\": " + words(cpu_features()) + ", \"instructions\": " + named(try_instructions()) +
      ", \"in_use\": " + words(used_instructions()) + ", \"conditions\": " + named(conditions()) + ", \"operators\": " + words(operators) +
      ", \"versions\": {\"llava_main\": \"2\", \"executorch\": " + quoted(EXECUTORCH_VERSION) + "}";
}

// What `runner/child.py` writes, field by field.
struct Result {
  std::string outcome = "ok";
  std::string message;
  std::map<std::string, std::string> errors;
  std::vector<double> call_s;
  double load_s = 0;

  void write(const std::filesystem::path& folder) const {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const std::string text = "{\"outcome\": " + quoted(outcome) + ", \"message\": " + quoted(message) + ", \"errors\": " + named(errors) +
        ", \"call_s\": [" + listed(call_s, [](double seconds) { return std::to_string(seconds); }) +
        "], \"load_s\": " + std::to_string(load_s) + ", \"peak_rss_bytes\": " + std::to_string(usage.ru_maxrss * 1024L) + ", " + machine() +
        "}\n";
    const std::filesystem::path temporary = folder / "result.tmp";
    std::ofstream file(temporary);
    file << text;
    file.close();
    if (!file) {
      throw std::runtime_error((folder / kResultFile).string() + ": cannot be written: is the disk full?");
    }
    std::filesystem::rename(temporary, folder / kResultFile);
  }
};

std::string numbered(size_t call, const std::string& rest) {
  char text[24];
  std::snprintf(text, sizeof text, "%05zu", call);
  return text + rest;
}

Array favoured(const Array& logits) {
  const int64_t token = argmax(logits);
  Array made{"i8", {1, 1}, std::vector<uint8_t>(sizeof token)};
  std::memcpy(made.bytes.data(), &token, sizeof token);
  return made;
}

// The piece of arithmetic by which times are measured: LOOP of runner/constants.py.
void loop() {
  constexpr size_t side = kLoopSide;
  const std::vector<float> factor(side * side, 1.0f / side);
  std::vector<float> product = factor;
  for (int time = 0; time < kLoopTimes; ++time) {
    std::vector<float> next(side * side, 0.0f);
    for (size_t row = 0; row < side; ++row) {
      for (size_t inner = 0; inner < side; ++inner) {
        const float scale = product[row * side + inner];
        for (size_t column = 0; column < side; ++column) {
          next[row * side + column] += scale * factor[inner * side + column];
        }
      }
    }
    product.swap(next);
  }
  volatile float used = product[0]; // so that none of it is left out
  static_cast<void>(used);
}

class Session {
 public:
  Session(const Bundle& bundle, const std::filesystem::path& folder) : bundle_(bundle), folder_(folder) {
    for (const Call& call : bundle.calls) {
      for (const Input& input : call.inputs) {
        if (input.kind != Input::Kind::array) {
          wanted_[{input.call, input.output}] = true;
        }
      }
    }
  }

  Result run() {
    Result result;
    const Clock::time_point begun = Clock::now();
    load(result);
    result.load_s = since(begun);
    std::ofstream place(folder_ / kPlaceFile);
    for (size_t number = 0; number < bundle_.calls.size() && result.outcome == "ok"; ++number) {
      // in place, never shorter: ext4 waits for the disk where a file is made empty and written again
      place.seekp(0) << number << std::flush;
      call(number, result);
    }
    if (bundle_.trace_bytes != 0 && result.outcome == "ok") {
      programs_.at(0)->write_trace(folder_);
    }
    return result;
  }

 private:
  void load(Result& result) {
    std::map<size_t, bool> instances{{0, true}};
    for (const Call& call : bundle_.calls) {
      instances[call.instance] = true;
    }
    for (const auto& [instance, unused] : instances) {
      const size_t buffer_bytes = bundle_.trace_bytes;
      programs_[instance] = std::make_unique<Program>(bundle_.pte, buffer_bytes);
      if (programs_[instance]->loaded != executorch::runtime::Error::Ok) {
        result.outcome = "refused";
        result.message = "loading from file failed with error " + error_text(programs_[instance]->loaded);
        return;
      }
    }
  }

  void call(size_t number, Result& result) {
    const Call& call = bundle_.calls[number];
    std::vector<Array> inputs;
    for (const Input& input : call.inputs) {
      inputs.push_back(given(input));
    }
    const Clock::time_point begun = Clock::now();
    if (call.method == kLoop) {
      loop();
      result.call_s.push_back(since(begun));
      return;
    }
    try {
      const auto answer = programs_.at(call.instance)->call(call.method, inputs);
      result.call_s.push_back(since(begun));
      keep(number, call, answer);
    } catch (const CallError& error) {
      if (call.may_fail) {
        result.errors[std::to_string(number)] = error.what;
        result.call_s.push_back(since(begun));
      } else {
        result.outcome = "failed";
        result.message = error.what;
      }
    }
  }

  Array given(const Input& input) const {
    if (input.kind == Input::Kind::array) {
      return read_npy(input.file);
    }
    const auto found = held_.find({input.call, input.output});
    if (found == held_.end()) {
      throw CallError{"the output of an earlier call is missing: it failed"};
    }
    return input.kind == Input::Kind::argmax ? favoured(found->second) : found->second;
  }

  void keep(size_t number, const Call& call, const std::vector<executorch::runtime::EValue>& answer) {
    const auto first = [&] { return call.last_row ? last_row(to_array(answer.at(0))) : to_array(answer.at(0)); };
    for (size_t output = 0; output < answer.size(); ++output) {
      if (wanted_.count({number, output}) != 0) {
        held_[{number, output}] = output == 0 ? first() : to_array(answer[output]);
      }
    }
    if (call.keep) {
      write_npy(first(), folder_ / numbered(number, ".npy"));
    }
    for (size_t place = 0; place < call.parts.size(); ++place) {
      const Array whole = to_array(answer.at(call.parts[place].output));
      write_npy(first_rows(whole, call.parts[place]), folder_ / numbered(number, "_" + std::to_string(place) + ".npy"));
    }
  }

  const Bundle& bundle_;
  std::filesystem::path folder_;
  std::map<size_t, std::unique_ptr<Program>> programs_;
  std::map<std::pair<size_t, size_t>, bool> wanted_;
  std::map<std::pair<size_t, size_t>, Array> held_;
};

} // namespace

int carry_out(const std::filesystem::path& folder, const std::filesystem::path& into, const std::filesystem::path& pte) {
  prctl(PR_SET_PDEATHSIG, SIGKILL); // nobody would read the result
  try {
    const Bundle bundle = read_bundle(folder, pte);
    if (bundle.threads) {
      set_threads(*bundle.threads);
      kernel_threads() = *bundle.threads;
    }
    Session(bundle, into).run().write(into);
    return 0;
  } catch (const CallError& error) {
    std::fprintf(stderr, "llava_main: %s\n", error.what.c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llava_main: %s\n", error.what());
  }
  return 2;
}

void print_machine() {
  std::printf("{%s}\n", machine().c_str());
}

} // namespace runner
