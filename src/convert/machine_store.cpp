#include "convert/machine_store.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <system_error>
#include <vector>

#include "base/cpu_features.h"

namespace mlx_entropy {
namespace {

namespace fs = std::filesystem;

// Of how it is measured: what an older one wrote is measured again.
constexpr const char* kVersion = "1";
constexpr char kTab = '\t';

// What a line starts with.
std::string key(const std::string& target, size_t threads) {
  std::ostringstream text;
  text << kVersion << kTab << cpu_model() << kTab << target << kTab << threads
       << kTab;
  return text.str();
}

bool plausible(double value, double most) {
  return std::isfinite(value) && value > 0 && value < most;
}

std::vector<std::string> lines_of(const std::string& file) {
  // Nobody has so many machines; a file that goes on is not ours.
  constexpr size_t kMostLines = 1000;
  std::vector<std::string> lines;
  std::ifstream stream(file);
  std::string line;
  while (lines.size() < kMostLines && std::getline(stream, line)) {
    lines.push_back(line);
  }
  return lines;
}

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string machine_store_file() {
  fs::path root = variable("XDG_CACHE_HOME");
  if (!root.is_absolute()) {
    const fs::path home = variable("HOME");
    if (!home.is_absolute()) return "";
    root = home / ".cache";
  }
  return (root / "mlx-entropy" / "machine-model.txt").string();
}

std::optional<MachineModel> stored_machine(const std::string& target,
                                           size_t threads) {
  const std::string file = machine_store_file();
  const std::string start = key(target, threads);
  for (const std::string& line : lines_of(file)) {
    if (line.rfind(start, 0) != 0) continue;
    MachineModel machine;
    machine.target = target;
    machine.threads = threads;
    machine.file = file;
    std::istringstream values(line.substr(start.size()));
    values >> machine.rans >> machine.tree >> machine.tree_merge >>
        machine.bandwidth;
    constexpr double kMostTime = 1e4, kMostBandwidth = 1e5;
    if (values && plausible(machine.rans, kMostTime) &&
        plausible(machine.tree + machine.tree_merge, kMostTime) &&
        machine.tree >= 0 && machine.tree_merge >= 0 &&
        plausible(machine.bandwidth, kMostBandwidth)) {
      return machine;
    }
  }
  return std::nullopt;
}

std::string store_machine(const MachineModel& machine) {
  const std::string file = machine_store_file();
  if (file.empty()) return "";
  std::error_code error;
  fs::create_directories(fs::path(file).parent_path(), error);
  const std::string part = file + "." + std::to_string(::getpid());
  {
    std::ofstream stream(part, std::ios::trunc);
    const std::string start = key(machine.target, machine.threads);
    for (const std::string& line : lines_of(file)) {
      const bool of_this_version = line.rfind(kVersion, 0) == 0;
      if (of_this_version && line.rfind(start, 0) != 0) stream << line << '\n';
    }
    stream << start << std::setprecision(6) << machine.rans << kTab
           << machine.tree << kTab << machine.tree_merge << kTab
           << machine.bandwidth << '\n';
    stream.close();
    if (stream.fail()) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(part, file, error);
  if (!error) return file;
  std::error_code ignored;
  fs::remove(part, ignored);
  return "";
}

}  // namespace mlx_entropy
