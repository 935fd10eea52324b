// The machine that runs this, emulated or not: its architecture, and the extensions that XNNPACK chooses kernels by.
#pragma once

#include <string>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace runner {

inline std::string isa() {
#if defined(__aarch64__)
  return "aarch64";
#elif defined(__x86_64__)
  return "x86_64";
#else
  return "unknown";
#endif
}

inline std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__aarch64__)
  // bits of AT_HWCAP and AT_HWCAP2 as Linux defines them (arch/arm64/include/uapi/asm/hwcap.h)
  struct Bit {
    unsigned long word;
    int bit;
    const char* name;
  };
  const unsigned long first = getauxval(AT_HWCAP);
  const unsigned long second = getauxval(AT_HWCAP2);
  const Bit bits[] = {{first, 1, "asimd"},  {first, 10, "asimdhp"}, {first, 20, "asimddp"}, {first, 22, "sve"},   {second, 1, "sve2"},
                      {second, 13, "i8mm"}, {second, 14, "bf16"},   {second, 23, "sme"},    {second, 37, "sme2"}};
  for (const Bit& bit : bits) {
    if ((bit.word >> bit.bit & 1) != 0) {
      found.emplace_back(bit.name);
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

} // namespace runner
