#include "base/cpu_features.h"

#include <algorithm>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace mlx_entropy {
namespace {

#if defined(__x86_64__)
uint64_t xgetbv() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

CpuFeatures detect() {
  CpuFeatures features;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave) return features;
  const uint64_t enabled = xgetbv();
  const bool ymm = (enabled & 0x06) == 0x06;  // XMM and YMM state
  const bool zmm = (enabled & 0xe6) == 0xe6;  // and opmask, ZMM low and high
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const bool avx2 = b >> 5 & 1, bmi2 = b >> 8 & 1;
  features.avx2 = ymm && avx2 && fma && f16c && bmi2;
  const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1,
             vl = b >> 31 & 1;
  features.avx512 = features.avx2 && zmm && f && dq && bw && vl;
  const bool vbmi = c >> 1 & 1, vbmi2 = c >> 6 & 1, vpopcntdq = c >> 14 & 1;
  features.avx512_vbmi = features.avx512 && vbmi && vbmi2 && vpopcntdq;
  features.avx512_vnni = features.avx512 && (c >> 11 & 1);
  return features;
}
#else
CpuFeatures detect() {
  CpuFeatures features;
#if defined(__aarch64__)
  features.neon = true;
#endif
  return features;
}
#endif

// Of the first CPU: its name, or the numbers that ARM has instead.
std::string read_model() {
  std::ifstream info("/proc/cpuinfo");
  std::string model, line;
  while (std::getline(info, line) && !(line.empty() && !model.empty())) {
    for (const char* name : {"model name", "CPU implementer", "CPU part"}) {
      const size_t colon = line.find(": ");
      if (line.rfind(name, 0) != 0 || colon == std::string::npos) continue;
      if (!model.empty()) model += ' ';
      model += line.substr(colon + 2);
    }
  }
  std::replace_if(
      model.begin(), model.end(), [](char c) { return c < ' '; }, ' ');
  return model.empty() ? "unknown" : model;
}

}  // namespace

const std::string& cpu_model() {
  static const std::string model = read_model();
  return model;
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace mlx_entropy
