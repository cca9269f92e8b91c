// Any bytes: refused, or harmless on every target, which must agree.
//
//   fuzz_validate -max_len=4096 CORPUS tests/vectors/valid
//
// The size and the checksum in the header are put right, because no mutation
// would ever get past them. Both are checked in other tests.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/thread_pool.h"
#include "support/bytes.h"
#include "support/exercise.h"

namespace {

using mlx_entropy::testing::Bytes;

void check(const Bytes& bytes) {
  bool accepted = false;
  const std::string what = mlx_entropy::testing::exercise(bytes, &accepted);
  if (what.empty()) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  // Inputs are small: waking threads would take longer than the work.
  mlx_entropy::ThreadPool::instance().resize(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes = mlx_entropy::testing::tight_copy(data, size);
  mlx_entropy::testing::fix_size(&bytes);
  check(bytes);
  return 0;
}
