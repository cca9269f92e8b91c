// The choice of a codec from known measurements, and where those are kept.
#include "convert/codec_choice.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "convert/machine_store.h"
#include "kernels/kernels.h"
#include "kernels/matrix_ops.h"
#include "support/matrices.h"

namespace mlx_entropy {
namespace {

namespace fs = std::filesystem;

// "rans", "tree" or "flat".
std::string name(const CodecChoice& choice) {
  if (choice.codec == Codec::kRans) return "rans";
  return choice.pass_cost == kFlatPassCost ? "flat" : "tree";
}

MachineModel machine(const ProbeTimes& times, size_t threads,
                     double bandwidth) {
  MachineModel model = model_from(times);
  model.threads = threads;
  model.bandwidth = bandwidth;
  return model;
}

std::vector<CodecChoice> ranked(const MachineModel& model) {
  auto matrix =
      testing::random_affine(1, 128, 1024, 4, 64, FloatType::kFloat16, false);
  const testing::Bytes coded = testing::encode(&matrix, 0);
  const auto prepared = validate(coded.data(), coded.size()).value();
  return rank_codecs(Transcoder(*prepared), model);
}

constexpr ProbeTimes kTimes{.rans = 0.11, .flat = 0.046, .compact = 0.09};

TEST(RankCodecs, PlainBitsComeFirstWhereDecodingIsTheLimit) {
  const auto choices = ranked(machine(kTimes, 2, 1000));
  ASSERT_GE(choices.size(), 3u);
  EXPECT_EQ(name(choices.front()), "flat");
  EXPECT_EQ(name(choices.back()), "rans");
  for (size_t i = 1; i < choices.size(); ++i) {
    EXPECT_LT(choices[i - 1].time, choices[i].time);
  }
  EXPECT_NEAR(choices.front().time, kTimes.flat / 2, 0.15 * kTimes.flat);
  EXPECT_NEAR(choices.back().time, kTimes.rans / 2, 1e-9);
}

TEST(RankCodecs, TheSmallestStaysWhereMemoryIsTheLimit) {
  const auto choices = ranked(machine(kTimes, 64, 10));
  EXPECT_EQ(name(choices.front()), "rans");
  for (const CodecChoice& choice : choices) {
    // Nothing else is smaller by enough to be worth its coding.
    EXPECT_LT(0.95 * choices.front().bits, choice.bits);
    EXPECT_NEAR(choice.time, choice.bits / 8 / 10, 1e-9);
  }
}

// Plain bits take 4.5 bits of a memory that feeds the threads for 4.2.
TEST(RankCodecs, ATreeComesFirstBetweenThem) {
  const ProbeTimes slow_rans{.rans = 5, .flat = 0.046, .compact = 0.05};
  const auto choices = ranked(machine(slow_rans, 64, 100));
  EXPECT_EQ(name(choices.front()), "tree");
  EXPECT_EQ(name(choices.back()), "rans");
  for (const CodecChoice& choice : choices) {
    if (name(choice) == "flat") {
      EXPECT_GT(choice.bits, choices.front().bits);
    }
  }
}

TEST(RankCodecs, AmongEquallyFastTheSmallestComesFirst) {
  const ProbeTimes equal{.rans = 1, .flat = 0.05, .compact = 0.0501};
  const auto choices = ranked(machine(equal, 1, 1000));
  EXPECT_EQ(name(choices.front()), "tree");
}

// As a machine that others use may have it.
TEST(ProbeTimes, NoiseDoesNotTurnTheOrderRound) {
  for (const KernelTable* target : available_targets()) {
    const ProbeTimes noise{.rans = 0.01, .flat = 0.046, .compact = 0.02};
    const ProbeTimes times = bounded(target->name, noise);
    EXPECT_LT(times.flat, times.rans) << target->name;
    EXPECT_LT(times.flat, times.compact) << target->name;
    const auto choices = ranked(machine(times, 2, 1000));
    EXPECT_EQ(name(choices.front()), "flat") << target->name;
    EXPECT_LT(bounded(target->name, {9, 0.046, 9}).rans, 1) << target->name;
  }
}

// A cache folder of its own for a test.
class MachineStore : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("mlx-entropy-store-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    ::setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("XDG_CACHE_HOME");
    fs::remove_all(folder_);
  }

  static MachineModel some(double rans) {
    MachineModel model;
    model.target = "avx2";
    model.threads = 3;
    model.rans = rans;
    model.tree = 0.25;
    model.tree_merge = 0.125;
    model.bandwidth = 40;
    return model;
  }
  static std::string content() {
    std::ifstream stream(machine_store_file());
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  fs::path folder_;
};

TEST_F(MachineStore, KeepsOneMeasurementForEachTargetAndThreads) {
  EXPECT_FALSE(stored_machine("avx2", 3));
  const std::string file = store_machine(some(0.5));
  EXPECT_EQ(file, (folder_ / "mlx-entropy" / "machine-model.txt").string());
  MachineModel other = some(0.75);
  other.threads = 4;
  store_machine(other);
  store_machine(some(1.5));  // in place of the first
  const auto found = stored_machine("avx2", 3);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->rans, 1.5);
  EXPECT_EQ(found->tree, 0.25);
  EXPECT_EQ(found->tree_merge, 0.125);
  EXPECT_EQ(found->bandwidth, 40);
  EXPECT_EQ(found->file, file);
  EXPECT_EQ(stored_machine("avx2", 4)->rans, 0.75);
  EXPECT_FALSE(stored_machine("avx512", 3));
  const std::string text = content();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  // Nothing but the file.
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "mlx-entropy"), {}),
            1);
}

TEST_F(MachineStore, IgnoresWhatMakesNoSense) {
  store_machine(some(0.5));
  const std::string line = content();
  const std::string start = line.substr(0, line.find("0.5"));
  for (const std::string& values :
       {std::string(), std::string("0.5"), std::string("0.5\t0.2\t0.1\t-1"),
        std::string("nan\t0.2\t0.1\t40"), std::string("0.5\t0.2\t0.1\t1e300"),
        std::string("rans\ttree\tmerge\tmemory"),
        std::string("0\t0.2\t0.1\t40")}) {
    std::ofstream(machine_store_file()) << start << values << '\n';
    EXPECT_FALSE(stored_machine("avx2", 3)) << values;
  }
  std::ofstream(machine_store_file()) << std::string(100000, '\xff');
  EXPECT_FALSE(stored_machine("avx2", 3));
  EXPECT_NE(store_machine(some(0.5)), "");
  EXPECT_TRUE(stored_machine("avx2", 3));
  EXPECT_EQ(content(), line);
}

TEST_F(MachineStore, KeepsNothingWhereItCannot) {
  std::ofstream(folder_ / "mlx-entropy") << "in the way";
  EXPECT_EQ(store_machine(some(0.5)), "");
  EXPECT_FALSE(stored_machine("avx2", 3));
  ::setenv("XDG_CACHE_HOME", "not/absolute", 1);
  ::setenv("HOME", folder_.c_str(), 1);
  EXPECT_EQ(machine_store_file(),
            (folder_ / ".cache/mlx-entropy/machine-model.txt").string());
  ::unsetenv("HOME");
  EXPECT_EQ(machine_store_file(), "");
  EXPECT_EQ(store_machine(some(0.5)), "");
}

}  // namespace
}  // namespace mlx_entropy
