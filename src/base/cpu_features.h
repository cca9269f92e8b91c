#pragma once

#include <string>

namespace mlx_entropy {

// What the CPU offers *and* the operating system saves on a context switch.
// CPUID alone is not enough: a kernel or hypervisor can leave the registers
// of an advertised extension disabled, and using them then traps.
struct CpuFeatures {
  bool avx2 = false;         // with FMA, F16C and BMI2, as on every AVX2 CPU
  bool avx512 = false;       // F, BW, DQ, VL
  bool avx512_vbmi = false;  // VBMI, VBMI2 and VPOPCNTDQ
  bool avx512_vnni = false;
  bool neon = false;
};

const CpuFeatures& cpu_features();

// What the operating system calls the CPU, on one line; "unknown" if it does
// not say.
const std::string& cpu_model();

}  // namespace mlx_entropy
