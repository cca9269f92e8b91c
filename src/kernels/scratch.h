#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mlx_entropy {

// Buffers that one thread reuses from call to call. They only grow.
class Scratch {
 public:
  enum Slot {
    kClasses,
    kWords,
    kSide,
    kScales,
    kBiases,
    kProducts,
    kNodes,
    kPartialBlock,
    kPanel,
    kTall,
    kAttention,
    kFloats,
    kSlots
  };

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // The calling thread's own.
  static Scratch& local();

  // 64-byte aligned room for `count` elements; the content is undefined, and
  // an earlier pointer from the same slot is dead.
  template <class T>
  T* get(Slot slot, size_t count) {
    return static_cast<T*>(bytes(slot, count * sizeof(T)));
  }

 private:
  void* bytes(Slot slot, size_t size);

  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
  };
  std::array<Buffer, kSlots> buffers_;
};

}  // namespace mlx_entropy
