#include "cpu.hpp"

#if defined(__aarch64__)
#include <link.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

namespace runner {
namespace {

#if defined(__aarch64__)
// Bits of AT_HWCAP and AT_HWCAP2 as Linux defines them (arch/arm64/include/uapi/asm/hwcap.h).
struct Feature {
  unsigned long type;
  int bit;
  const char* name;
};
constexpr Feature kFeatures[] = {
    {AT_HWCAP, 1, "asimd"},  {AT_HWCAP, 10, "asimdhp"}, {AT_HWCAP, 20, "asimddp"}, {AT_HWCAP, 22, "sve"},   {AT_HWCAP2, 1, "sve2"},
    {AT_HWCAP2, 13, "i8mm"}, {AT_HWCAP2, 14, "bf16"},   {AT_HWCAP2, 23, "sme"},    {AT_HWCAP2, 37, "sme2"}};

constexpr size_t kMostBytes = 256; // of a vector: 2048 bits

// Operands without pattern, both signs, no two rows alike.
template <typename T>
void fill(T* left, T* right, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    left[i] = static_cast<T>(static_cast<int>(i * 37 % 251) - 125);
    right[i] = static_cast<T>(static_cast<int>((i * 91 + 5) % 253) - 126);
  }
}

// Compares rows x columns results with sums of `depth` products; says where the first one differs.
template <typename T, typename Sum>
std::string compare(const Sum* actual, const T* left, const T* right, size_t rows, size_t columns, size_t depth) {
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      Sum expected = 0;
      for (size_t k = 0; k < depth; ++k) {
        expected += static_cast<Sum>(left[row * depth + k]) * static_cast<Sum>(right[column * depth + k]);
      }
      if (actual[row * columns + column] != expected) {
        return "row " + std::to_string(row) + ", column " + std::to_string(column) + " is " +
            std::to_string(actual[row * columns + column]) + ", expected " + std::to_string(expected);
      }
    }
  }
  return "";
}

// SDOT v2.4s, v0.16b, v1.16b: four sums of four products.
std::string try_sdot() {
  int8_t left[16];
  int8_t right[16];
  int32_t sums[4] = {};
  fill(left, right, 16);
  asm volatile(
      "ldr q0, [%0]\n ldr q1, [%1]\n movi v2.4s, #0\n .inst 0x4e819402\n str q2, [%2]\n" ::"r"(left), "r"(right), "r"(sums)
      : "v0", "v1", "v2", "memory");
  for (size_t lane = 0; lane < 4; ++lane) {
    const std::string wrong = compare(sums + lane, left + 4 * lane, right + 4 * lane, 1, 1, 4);
    if (!wrong.empty()) {
      return "lane " + std::to_string(lane) + ": " + wrong;
    }
  }
  return "";
}

// SMMLA v2.4s, v0.16b, v1.16b: 2 x 8 times 8 x 2.
std::string try_smmla() {
  int8_t left[16];
  int8_t right[16];
  int32_t sums[4] = {};
  fill(left, right, 16);
  asm volatile(
      "ldr q0, [%0]\n ldr q1, [%1]\n movi v2.4s, #0\n .inst 0x4e81a402\n str q2, [%2]\n" ::"r"(left), "r"(right), "r"(sums)
      : "v0", "v1", "v2", "memory");
  return compare(sums, left, right, 2, 2, 8);
}

// Streaming mode clears every vector register: all of them are lost to the compiler.
#define LOST_TO_STREAMING                                                                                                        \
  "x9", "x10", "x12", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", \
      "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31", "cc", "memory"

// One outer product of two whole vectors into ZA's first tile of words, stored row by row. `OUTER` is the instruction, on z0 and
// z1 under p0. In words: rdsvl x10, #1; smstart; ptrue p0.b; zero {za}; ld1b z0, z1; OUTER; for each row st1w; smstop.
#define OUTER_PRODUCT(OUTER)                                                                                                  \
  asm volatile(                                                                                                              \
      ".inst 0x04bf582a\n .inst 0xd503477f\n .inst 0x2518e3e0\n .inst 0xc00800ff\n"                                            \
      "mov x9, %1\n .inst 0xa400a120\n mov x9, %2\n .inst 0xa400a121\n .inst " OUTER "\n"                                      \
      "mov x9, %3\n mov w12, #0\n"                                                                                            \
      "1: .inst 0xe0bf0120\n add x9, x9, x10\n add w12, w12, #1\n cmp x10, x12, lsl #2\n b.hi 1b\n"                            \
      ".inst 0xd503467f\n mov %0, x10\n"                                                                                      \
      : "=r"(vector_bytes)                                                                                                   \
      : "r"(left), "r"(right), "r"(sums)                                                                                     \
      : LOST_TO_STREAMING)

// SMOPA za0.s, p0/m, p0/m, z0.b, z1.b: every row of four times every column of four.
__attribute__((noinline)) std::string try_smopa() {
  static int8_t left[kMostBytes];
  static int8_t right[kMostBytes];
  static int32_t sums[kMostBytes / 4 * kMostBytes / 4];
  size_t vector_bytes = 0;
  fill(left, right, kMostBytes);
  OUTER_PRODUCT("0xa0810000");
  return compare(sums, left, right, vector_bytes / 4, vector_bytes / 4, 4);
}

// FMOPA za0.s, p0/m, p0/m, z0.s, z1.s. Its products are small whole numbers: exact in fp32.
__attribute__((noinline)) std::string try_fmopa() {
  static float left[kMostBytes / 4];
  static float right[kMostBytes / 4];
  static float sums[kMostBytes / 4 * kMostBytes / 4];
  size_t vector_bytes = 0;
  fill(left, right, kMostBytes / 4);
  OUTER_PRODUCT("0x80810000");
  return compare(sums, left, right, vector_bytes / 4, vector_bytes / 4, 1);
}
#endif

#if defined(__aarch64__)
struct Range {
  uintptr_t begin;
  uintptr_t end;

  bool has(uintptr_t at) const {
    return at >= begin && at < end;
  }
};

// XNNPACK as it lies in memory: its code, and what it writes, but for what the linker writes once.
struct Library {
  Range code{0, 0};
  std::vector<Range> data;
};

int look_at(dl_phdr_info* info, size_t, void* into) {
  if (std::strstr(info->dlpi_name, "backend_xnnpack") == nullptr) {
    return 0;
  }
  auto& library = *static_cast<Library*>(into);
  uintptr_t fixed_end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    if (part.p_type == PT_GNU_RELRO) {
      fixed_end = begin + part.p_memsz;
    } else if (part.p_type == PT_LOAD && (part.p_flags & PF_X) != 0) {
      library.code = {begin, begin + part.p_memsz};
    } else if (part.p_type == PT_LOAD && (part.p_flags & PF_W) != 0) {
      library.data.push_back({begin, begin + part.p_memsz});
    }
  }
  for (Range& range : library.data) {
    range.begin = std::max(range.begin, fixed_end);
  }
  return 1;
}

// Encodings of the Arm Architecture Reference Manual: an instruction's word under the mask of its fixed bits.
struct Pattern {
  uint32_t mask;
  uint32_t word;
  const char* name;
};
constexpr Pattern kPatterns[] = {
    {0xffe0fc00, 0x4e809400, "SDOT"}, {0xffc0f400, 0x4f80e000, "SDOT"}, {0xffe0fc00, 0x4e80a400, "SMMLA"},
    {0xffe0001c, 0xa0800000, "SMOPA"}, {0xffe0fc00, 0x4e20cc00, "FMLA"}, {0xffc0f400, 0x4f801000, "FMLA"},
    {0xffe0001c, 0x80800000, "FMOPA"}};
constexpr size_t kMostWords = 8192; // of one function
constexpr int kMostCalls = 2; // deep: a kernel of KleidiAI stands behind a wrapper
constexpr uint32_t kReturn = 0xd65f03c0;

// Reads a function's instructions to its return, and those of the functions that it calls.
void read_function(const Range& code, uintptr_t at, int calls, std::set<uintptr_t>& seen, std::set<std::string>& found) {
  if (!seen.insert(at).second) {
    return;
  }
  for (size_t count = 0; count < kMostWords && code.has(at); ++count, at += 4) {
    const auto word = *reinterpret_cast<const uint32_t*>(at);
    for (const Pattern& pattern : kPatterns) {
      if ((word & pattern.mask) == pattern.word) {
        found.insert(pattern.name);
      }
    }
    if (word >> 26 == 0x25 && calls < kMostCalls) { // bl, 26 bits of signed words
      const auto offset = static_cast<int64_t>(static_cast<int32_t>(word << 6) >> 6) * 4;
      read_function(code, at + static_cast<uintptr_t>(offset), calls + 1, seen, found);
    }
    if (word == kReturn) {
      return;
    }
  }
}
#endif

} // namespace

std::string isa() {
#if defined(__aarch64__)
  return "aarch64";
#elif defined(__x86_64__)
  return "x86_64";
#else
  return "unknown";
#endif
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__aarch64__)
  for (const Feature& feature : kFeatures) {
    if ((getauxval(feature.type) >> feature.bit & 1) != 0) {
      found.emplace_back(feature.name);
    }
  }
#elif defined(__x86_64__)
  __builtin_cpu_init();
  const std::pair<bool, const char*> features[] = {
      {__builtin_cpu_supports("avx") != 0, "avx"},         {__builtin_cpu_supports("avx2") != 0, "avx2"},
      {__builtin_cpu_supports("fma") != 0, "fma"},         {__builtin_cpu_supports("avx512f") != 0, "avx512f"},
      {__builtin_cpu_supports("avx512vnni") != 0, "avx512_vnni"}};
  for (const auto& [has, name] : features) {
    if (has) {
      found.emplace_back(name);
    }
  }
#endif
  return found;
}

std::map<std::string, std::string> try_instructions() {
  std::map<std::string, std::string> found;
#if defined(__aarch64__)
  const std::vector<std::string> has = cpu_features();
  const auto with = [&](const char* name) { return std::find(has.begin(), has.end(), name) != has.end(); };
  if (with("asimddp")) {
    found["SDOT"] = try_sdot();
  }
  if (with("i8mm")) {
    found["SMMLA"] = try_smmla();
  }
  if (with("sme")) {
    found["SMOPA"] = try_smopa();
    found["FMOPA"] = try_fmopa();
  }
#endif
  return found;
}

std::vector<std::string> used_instructions() {
  std::set<std::string> found;
#if defined(__aarch64__)
  Library library;
  dl_iterate_phdr(look_at, &library);
  std::set<uintptr_t> seen;
  for (const Range& range : library.data) {
    for (uintptr_t at = (range.begin + 7) & ~uintptr_t{7}; at + sizeof(uintptr_t) <= range.end; at += sizeof(uintptr_t)) {
      const auto word = *reinterpret_cast<const uintptr_t*>(at);
      if (library.code.has(word) && word % 4 == 0) {
        read_function(library.code, word, 0, seen, found);
      }
    }
  }
#endif
  return {found.begin(), found.end()};
}

std::map<std::string, double> conditions() {
  std::map<std::string, double> found;
  std::ifstream memory("/proc/meminfo");
  for (std::string line; std::getline(memory, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) {
      found["free_memory_bytes"] = std::stod(line.substr(13)) * 1024;
    }
  }
  std::error_code ignored;
  for (const auto& zone : std::filesystem::directory_iterator("/sys/class/thermal", ignored)) {
    std::ifstream file(zone.path() / "temp");
    double thousandths = 0;
    if (file >> thousandths) {
      found["hottest_celsius"] = std::max(found["hottest_celsius"], thousandths / 1000);
    }
  }
  return found;
}

} // namespace runner
