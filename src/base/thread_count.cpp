#include "base/thread_count.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mlx_entropy {
namespace {

constexpr size_t kMaxThreads = 4096;

// The number that `text` starts with, and what follows it.
std::optional<int64_t> leading_number(std::string_view text,
                                      std::string_view* rest) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  text.remove_prefix(first);
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return {};
  *rest = text.substr(static_cast<size_t>(end - text.data()));
  return value;
}

size_t affinity_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return static_cast<size_t>(CPU_COUNT(&set));
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

std::optional<std::string> read_text(const std::string& path) {
  std::ifstream file(path);
  if (!file) return {};
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Whole CPUs that `quota` microseconds in each `period` are worth; nothing for
// "max" and for -1.
std::optional<size_t> cpus_of(std::string_view quota, std::string_view period) {
  std::string_view rest;
  const auto q = leading_number(quota, &rest);
  const auto p = leading_number(period, &rest);
  if (!q || !p || *q <= 0 || *p <= 0) return {};
  return static_cast<size_t>((*q - 1) / *p + 1);
}

std::optional<size_t> quota_of_directory(const std::string& directory,
                                         bool version2) {
  if (version2) {
    const auto text = read_text(directory + "/cpu.max");
    if (!text) return {};
    const size_t space = std::min(text->find(' '), text->size());
    return cpus_of(text->substr(0, space), text->substr(space));
  }
  const auto quota = read_text(directory + "/cpu.cfs_quota_us");
  const auto period = read_text(directory + "/cpu.cfs_period_us");
  return quota && period ? cpus_of(*quota, *period) : std::nullopt;
}

bool lists(std::string_view list, std::string_view wanted) {
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    if (list.substr(begin, end - begin) == wanted) return true;
    begin = end + 1;
  }
  return false;
}

// A mounted hierarchy of control groups that has a CPU quota.
struct Mount {
  std::string group;  // the group that is mounted
  std::string directory;
  bool version2;
};

std::vector<Mount> cpu_mounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string skipped, type, source, options;
    Mount mount;
    fields >> skipped >> skipped >> skipped >> mount.group >> mount.directory;
    while (fields >> skipped && skipped != "-") continue;
    fields >> type >> source >> options;
    mount.version2 = type == "cgroup2";
    if (mount.version2 || (type == "cgroup" && lists(options, "cpu"))) {
      mounts.push_back(mount);
    }
  }
  return mounts;
}

// This process's group in a hierarchy: a line of /proc/self/cgroup is
// "number:controllers:path", and version 2 is "0::path".
std::string own_group(const std::string& root, bool version2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string_view controllers =
        std::string_view(line).substr(first + 1, second - first - 1);
    if (version2 ? controllers.empty() : lists(controllers, "cpu")) {
      return line.substr(second + 1);
    }
  }
  return "/";
}

// `group` as seen from the mount. A group outside of what is mounted (with
// ".." in a cgroup namespace) is as good as the mount's top: of those that can
// be seen, only that one can be above it.
std::string group_below(const Mount& mount, std::string group) {
  if (mount.group != "/") {
    const bool inside =
        group.starts_with(mount.group) && (group.size() == mount.group.size() ||
                                           group[mount.group.size()] == '/');
    group = inside ? group.substr(mount.group.size()) : "";
  }
  if (group.find("/..") != std::string::npos || group == "/") return "";
  return group;
}

}  // namespace

std::optional<size_t> parse_thread_count(std::string_view text) {
  std::string_view rest;
  const auto count = leading_number(text, &rest);
  if (!count || *count < 1 || *count > int64_t{kMaxThreads}) return {};
  const size_t next = rest.find_first_not_of(" \t\n");
  if (next != std::string_view::npos && rest[next] != ',') return {};
  return static_cast<size_t>(*count);
}

std::optional<size_t> cgroup_cpu_limit(const std::string& root) {
  std::optional<size_t> limit;
  for (const Mount& mount : cpu_mounts(root)) {
    std::string group = group_below(mount, own_group(root, mount.version2));
    for (;;) {
      const auto quota =
          quota_of_directory(root + mount.directory + group, mount.version2);
      if (quota) limit = std::min(limit.value_or(*quota), *quota);
      if (group.empty()) break;
      group.resize(group.rfind('/') == std::string::npos ? 0
                                                         : group.rfind('/'));
    }
  }
  return limit;
}

ThreadCount choose_thread_count(const char* own_variable,
                                const char* openmp_variable, size_t cpus,
                                std::optional<size_t> quota) {
  const auto parse = [](const char* text) {
    return text == nullptr ? std::nullopt : parse_thread_count(text);
  };
  if (const auto count = parse(own_variable)) {
    return {*count, "MLX_ENTROPY_NUM_THREADS"};
  }
  if (const auto count = parse(openmp_variable)) {
    return {*count, "OMP_NUM_THREADS"};
  }
  if (quota && *quota < cpus) return {*quota, "CPU quota"};
  return {cpus, "CPUs"};
}

const ThreadCount& default_thread_count() {
  static const ThreadCount count = choose_thread_count(
      std::getenv("MLX_ENTROPY_NUM_THREADS"), std::getenv("OMP_NUM_THREADS"),
      affinity_cpus(), cgroup_cpu_limit(""));
  return count;
}

}  // namespace mlx_entropy
