#include "kernels/scratch.h"

#include <new>

namespace mlx_entropy {
namespace {
constexpr std::align_val_t kAlignment{64};
}

Scratch::~Scratch() {
  for (Buffer& buffer : buffers_) ::operator delete(buffer.data, kAlignment);
}

Scratch& Scratch::local() {
  thread_local Scratch scratch;
  return scratch;
}

void* Scratch::bytes(Slot slot, size_t size) {
  Buffer& buffer = buffers_[slot];
  if (buffer.size < size) {
    ::operator delete(buffer.data, kAlignment);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = ::operator new(size, kAlignment);
    buffer.size = size;
  }
  return buffer.data;
}

}  // namespace mlx_entropy
