#include "support/counting_new.h"

#include <cstdlib>
#include <new>

namespace mlx_entropy::testing {

std::atomic<size_t> allocated_bytes{0};

}  // namespace mlx_entropy::testing

namespace {

void* counted(size_t size, size_t alignment) noexcept {
  mlx_entropy::testing::allocated_bytes += size;
  // Not rounded up: the address sanitizer must see the exact end.
  void* p = nullptr;
  return posix_memalign(&p, alignment, size) == 0 ? p : nullptr;
}

void* counted_or_throw(size_t size, size_t alignment) {
  void* const p = counted(size, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

constexpr size_t kDefault = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

// All forms: the sanitizers' own would not match those that are replaced.
using Align = std::align_val_t;
using Nothrow = std::nothrow_t;
void* operator new(size_t n) { return counted_or_throw(n, kDefault); }
void* operator new[](size_t n) { return counted_or_throw(n, kDefault); }
void* operator new(size_t n, Align a) { return counted_or_throw(n, size_t(a)); }
void* operator new[](size_t n, Align a) {
  return counted_or_throw(n, size_t(a));
}
void* operator new(size_t n, const Nothrow&) noexcept {
  return counted(n, kDefault);
}
void* operator new[](size_t n, const Nothrow&) noexcept {
  return counted(n, kDefault);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, Align) noexcept { std::free(p); }
void operator delete[](void* p, Align) noexcept { std::free(p); }
void operator delete(void* p, size_t, Align) noexcept { std::free(p); }
void operator delete[](void* p, size_t, Align) noexcept { std::free(p); }
void operator delete(void* p, const Nothrow&) noexcept { std::free(p); }
void operator delete[](void* p, const Nothrow&) noexcept { std::free(p); }
