#include <atomic>
#include <cstdlib>
#include <string>

#include "base/cpu_features.h"
#include "kernels/kernels.h"

namespace mlx_entropy {
namespace {

std::vector<const KernelTable*> detect() {
  std::vector<const KernelTable*> targets;
#if defined(__x86_64__)
  if (cpu_features().avx512_vbmi && cpu_features().avx512_vnni) {
    targets.push_back(&avx512_kernels());
  }
  if (cpu_features().avx512) targets.push_back(&avx512bw_kernels());
  if (cpu_features().avx2) targets.push_back(&avx2_kernels());
#elif defined(__aarch64__)
  if (cpu_features().neon) targets.push_back(&neon_kernels());
#endif
  targets.push_back(&scalar_kernels());
  return targets;
}

const KernelTable* find(std::string_view name) {
  for (const KernelTable* target : available_targets()) {
    if (name == target->name) return target;
  }
  return nullptr;
}

std::atomic<const KernelTable*>& active() {
  static std::atomic<const KernelTable*> target = [] {
    // A name that this machine cannot run is ignored here, because there is
    // nobody to tell; `mlx-entropy doctor` reports it.
    const char* name = std::getenv("MLX_ENTROPY_TARGET");
    const KernelTable* forced = name != nullptr ? find(name) : nullptr;
    return forced != nullptr ? forced : available_targets().front();
  }();
  return target;
}

}  // namespace

const std::vector<const KernelTable*>& available_targets() {
  static const std::vector<const KernelTable*> targets = detect();
  return targets;
}

const KernelTable& active_target() {
  return *active().load(std::memory_order_relaxed);
}

Status set_target(std::string_view name) {
  const KernelTable* target = find(name);
  if (target == nullptr) {
    std::string known;
    for (const KernelTable* each : available_targets()) {
      known += known.empty() ? "" : ", ";
      known += each->name;
    }
    return Status::error("target \"" + std::string(name) +
                         "\" cannot run here; this machine has " + known);
  }
  active().store(target, std::memory_order_relaxed);
  return {};
}

}  // namespace mlx_entropy
