#include "base/thread_count.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace mlx_entropy {
namespace {

TEST(ParseThreadCount, TakesTheFirstNumberOfAList) {
  EXPECT_EQ(parse_thread_count("4"), 4u);
  EXPECT_EQ(parse_thread_count(" 12 \n"), 12u);
  EXPECT_EQ(parse_thread_count("8,4,2"), 8u);
  EXPECT_EQ(parse_thread_count("3 , 2"), 3u);
  EXPECT_EQ(parse_thread_count("4096"), 4096u);
}

TEST(ParseThreadCount, RefusesEverythingElse) {
  for (const char* text : {"", " ", "0", "-2", "+2", "two", "4x", "4 2", "1.5",
                           ",4", "4097", "99999999999999999999"}) {
    EXPECT_EQ(parse_thread_count(text), std::nullopt) << text;
  }
}

TEST(ChooseThreadCount, TheStrongestSourceDecides) {
  const auto choose = [](const char* own, const char* openmp,
                         std::optional<size_t> quota) {
    const ThreadCount chosen = choose_thread_count(own, openmp, 8, quota);
    return std::to_string(chosen.count) + " " + chosen.source;
  };
  EXPECT_EQ(choose("3", "5", 2), "3 MLX_ENTROPY_NUM_THREADS");
  EXPECT_EQ(choose("no", "5,1", 2), "5 OMP_NUM_THREADS");
  EXPECT_EQ(choose("0", "", 2), "2 CPU quota");
  EXPECT_EQ(choose(nullptr, nullptr, 8), "8 CPUs");
  EXPECT_EQ(choose(nullptr, nullptr, 100), "8 CPUs");
  EXPECT_EQ(choose(nullptr, "-1", std::nullopt), "8 CPUs");
}

// A file system of control groups in a temporary directory.
class ControlGroups : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "control_groups_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  // Version 2, mounted as a host or a container sees it.
  void mount2(const std::string& own_group, const std::string& mounted = "/") {
    write("/proc/self/cgroup", "0::" + own_group + "\n");
    write("/proc/self/mountinfo",
          "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
          "30 22 0:26 " +
              mounted +
              " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
  }
  void max2(const std::string& group, const std::string& text) {
    write("/sys/fs/cgroup" + group + "/cpu.max", text + "\n");
  }

  // Version 1, "cpu" beside another controller.
  void mount1(const std::string& own_group, const std::string& mounted = "/") {
    write("/proc/self/cgroup",
          "5:cpuset:/elsewhere\n4:cpu,cpuacct:" + own_group + "\n0::/\n");
    write("/proc/self/mountinfo",
          "31 22 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
          "32 22 0:28 " +
              mounted +
              " /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup "
              "rw,cpu,cpuacct\n");
  }
  void quota1(const std::string& group, const std::string& quota,
              const std::string& period) {
    const std::string directory = "/sys/fs/cgroup/cpu,cpuacct" + group;
    write(directory + "/cpu.cfs_quota_us", quota + "\n");
    write(directory + "/cpu.cfs_period_us", period + "\n");
  }

  std::optional<size_t> limit() const { return cgroup_cpu_limit(root_); }

  std::string root_;
};

TEST_F(ControlGroups, NoneIsNoLimit) { EXPECT_EQ(limit(), std::nullopt); }

TEST_F(ControlGroups, PartsOfACpuCountAsOne) {
  mount2("/");
  max2("", "150000 100000");
  EXPECT_EQ(limit(), 2u);
  max2("", "200000 100000");
  EXPECT_EQ(limit(), 2u);
  max2("", "1000 100000");
  EXPECT_EQ(limit(), 1u);
}

TEST_F(ControlGroups, MaxAndNonsenseAreNoLimit) {
  mount2("/");
  for (const char* text : {"max 100000", "", "nonsense", "100000", "5 0",
                           "-1 100000", "0 100000"}) {
    max2("", text);
    EXPECT_EQ(limit(), std::nullopt) << text;
  }
}

TEST_F(ControlGroups, TheTightestGroupAboveCounts) {
  mount2("/kubepods/pod7/app");
  max2("", "max 100000");
  max2("/kubepods", "800000 100000");
  max2("/kubepods/pod7", "300000 100000");
  max2("/kubepods/pod7/app", "max 100000");
  max2("/kubepods/pod8", "100000 100000");
  EXPECT_EQ(limit(), 3u);
  max2("/kubepods/pod7/app", "400000 100000");
  EXPECT_EQ(limit(), 3u);
  max2("/kubepods/pod7/app", "100000 100000");
  EXPECT_EQ(limit(), 1u);
}

TEST_F(ControlGroups, TheMountIsTheContainersOwnGroup) {
  mount2("/docker/1234/worker", "/docker/1234");
  max2("", "500000 100000");
  EXPECT_EQ(limit(), 5u);
  max2("/worker", "200000 100000");
  EXPECT_EQ(limit(), 2u);
}

TEST_F(ControlGroups, AGroupOutsideOfTheMountCountsAsItsTop) {
  max2("", "500000 100000");
  for (const char* group : {"/../other", "/docker/12345", "/else"}) {
    mount2(group, "/docker/1234");
    EXPECT_EQ(limit(), 5u) << group;
  }
  mount2("/../other");
  EXPECT_EQ(limit(), 5u);
}

TEST_F(ControlGroups, VersionOne) {
  mount1("/docker/1234");
  quota1("", "-1", "100000");
  EXPECT_EQ(limit(), std::nullopt);
  quota1("/docker", "250000", "100000");
  quota1("/docker/1234", "-1", "100000");
  EXPECT_EQ(limit(), 3u);
  quota1("/docker/1234", "50000", "50000");
  EXPECT_EQ(limit(), 1u);
}

TEST_F(ControlGroups, VersionOneInAContainer) {
  mount1("/docker/1234", "/docker/1234");
  quota1("", "400000", "100000");
  EXPECT_EQ(limit(), 4u);
}

}  // namespace
}  // namespace mlx_entropy
