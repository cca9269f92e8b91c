// Reads the planes of several tiles in lockstep.
//
// Included by each target's file inside its target region, after all standard
// headers, so that everything here is compiled for that target. `Target` has
// the operations that differ between instruction sets:
//   decode16<V>(states, streams, table, steps, out)   V streams, unchecked
//   decode32<V>(states, streams, slots, steps, out)
//   spread_mask(mask, bytes)     bytes[i] = bit i of mask, 64 bytes
//   join_bits(classes, raw, raw_bits, out)
//                                out[i] = classes[i] << raw_bits | raw bits,
//                                at most 7, from raw_bits masks; 64 bytes
//   join_words(classes, raw, raw_bits, shift, base, out)
//                                base + (as join_bits << shift), for up to 32
//                                raw bits; only with a member kJoinsWords
//   look_up(table, bytes)        bytes[i] = table[bytes[i]], 64 bytes
#pragma once

#include "kernels/body/tree.h"

namespace mlx_entropy::body {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

template <class Target, int V>
class TileReader {
 public:
  TileReader(const PreparedMatrix& matrix, uint32_t first_tile,
             Scratch& scratch)
      : matrix_(matrix), header_(matrix.header()), scratch_(scratch) {
    const size_t bytes = kLanes * header_.limits().state_bytes;
    for (int v = 0; v < V; ++v) {
      tiles_[v] =
          matrix.container().tile(first_tile + static_cast<uint32_t>(v));
      streams_[v] = tiles_[v].stream;
      if (header_.has_states()) {
        __builtin_memcpy(states_[v], tiles_[v].states, bytes);
      }
    }
  }

  const Tile& tile(int v) const { return tiles_[v]; }
  const uint8_t* stream(int v) const { return streams_[v]; }
  uint32_t state(int v, size_t lane) const {
    return header_.coder == Coder::kRans16
               ? load<uint16_t>(states_[v] + 2 * lane)
               : load<uint32_t>(states_[v] + 4 * lane);
  }

  // The classes of the next `steps` steps of a plane, 64 bytes a step and with
  // a tree up to 64 bytes more. A tree plane has to be read in whole blocks,
  // but for the last time.
  void read_classes(size_t plane, size_t steps, uint8_t* const* out) {
    if (!header_.planes[plane].coded()) {
      for (int v = 0; v < V; ++v) __builtin_memset(out[v], 0, steps * kLanes);
    } else if (header_.coder == Coder::kTree) {
      for (int v = 0; v < V; ++v) read_blocks(v, plane, steps * kLanes, out[v]);
    } else if (header_.coder == Coder::kRans16) {
      Target::template decode16<V>(states_, streams_,
                                   matrix_.tables(plane).alias, steps, out);
    } else {
      Target::template decode32<V>(
          states_, streams_, matrix_.tables(plane).slots.data(), steps, out);
    }
  }

 private:
  // Hardware prefetchers stop at the end of each page, and pages of a stream
  // are read faster than they come from memory.
  static void prefetch(const uint8_t* from, size_t size, const uint8_t* end) {
    if (from >= end) return;
    const auto left = static_cast<size_t>(end - from);
    if (size > left) size = left;
    for (size_t i = 0; i < size; i += 64) __builtin_prefetch(from + i);
  }

  void read_blocks(int v, size_t plane, size_t wanted, uint8_t* out) {
    const TreeTables& tree = matrix_.tables(plane).tree;
    const size_t values = tiles_[v].planes[plane].values;
    const size_t block = size_t{tree_block_rows(header_.cols)} * header_.cols;
    while (wanted > 0 && blocks_read_[v] * block < values) {
      const uint8_t* const start = streams_[v];
      prefetch(start + last_block_[v], last_block_[v], tiles_[v].stream_end);
      const size_t left = values - blocks_read_[v]++ * block;
      const size_t count = left < block ? left : block;
      if (wanted >= count) {
        streams_[v] =
            decode_block<Target>(tree, count, streams_[v], out, scratch_);
      } else {
        uint8_t* const whole = scratch_.template get<uint8_t>(
            Scratch::kPartialBlock, count + kNodeSlack);
        streams_[v] =
            decode_block<Target>(tree, count, streams_[v], whole, scratch_);
        __builtin_memcpy(out, whole, wanted);
      }
      last_block_[v] = static_cast<size_t>(streams_[v] - start);
      out += count;
      wanted -= wanted < count ? wanted : count;
    }
  }

  const PreparedMatrix& matrix_;
  const MatrixHeader& header_;
  Scratch& scratch_;
  size_t blocks_read_[V] = {};
  size_t last_block_[V] = {};  // bytes
  Tile tiles_[V];
  const uint8_t* streams_[V];
  alignas(64) uint8_t states_[V][kLanes * sizeof(uint32_t)];
};

// value = base + ((class << raw_bits | raw) << shift)
template <class Target, class Value>
void assemble_step(const Plane& plane, const uint8_t* raw,
                   const uint8_t* classes, Value* out) {
  if constexpr (sizeof(Value) == 1) {
    if (plane.raw_bits < 8) {
      Target::join_bits(classes, raw, plane.raw_bits, out);
      if (plane.shift == 0 && plane.base == 0) return;
      for (size_t i = 0; i < kLanes; ++i) {
        out[i] = static_cast<uint8_t>(plane.base + (out[i] << plane.shift));
      }
      return;
    }
  }
  const int raw_bits = plane.raw_bits;
  if constexpr (sizeof(Value) == 4 && requires { Target::kJoinsWords; }) {
    const bool constant = !plane.coded() && raw_bits == 0;
    Target::join_words(classes, raw, raw_bits, constant ? 0 : plane.shift,
                       plane.base, out);
    return;
  }
  alignas(64) Value values[kLanes];
  const auto base = static_cast<Value>(plane.base);
  // A plane whose values are raw throughout has class 0 only, and shifting by
  // its full width would be undefined.
  const int class_shift = plane.coded() ? raw_bits : 0;
  // So would shifting nothing by it, in a plane that is one constant.
  const int value_shift = plane.coded() || raw_bits > 0 ? plane.shift : 0;
  for (size_t i = 0; i < kLanes; ++i) {
    values[i] =
        static_cast<Value>(static_cast<Value>(classes[i]) << class_shift);
  }
  int shift = 0;
  for (; shift + 8 <= raw_bits; shift += 8, raw += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      values[i] = static_cast<Value>(
          values[i] + static_cast<Value>(static_cast<Value>(raw[i]) << shift));
    }
  }
  for (; shift < raw_bits; ++shift, raw += kLanes / 8) {
    alignas(64) uint8_t bits[kLanes];
    Target::spread_mask(load<uint64_t>(raw), bits);
    for (size_t i = 0; i < kLanes; ++i) {
      values[i] = static_cast<Value>(
          values[i] + static_cast<Value>(static_cast<Value>(bits[i]) << shift));
    }
  }
  for (size_t i = 0; i < kLanes; ++i) {
    out[i] =
        static_cast<Value>(base + static_cast<Value>(values[i] << value_shift));
  }
}

inline bool is_class_itself(const Plane& plane) {
  return plane.raw_bits == 0 && plane.shift == 0 && plane.base == 0 &&
         plane.palette.empty();
}

// Steps [first, first + steps) of a plane from their classes, exceptions
// included; `next_exception` moves past those that were applied. In place when
// `out` is `classes`.
template <class Target, class Value>
void assemble(const Plane& plane, const PlaneTables& tables,
              const TilePlane& tile, size_t first, size_t steps,
              const uint8_t* classes, Value* out, uint32_t* next_exception) {
  const size_t stride = raw_step_bytes(plane.raw_bits);
  if (!plane.palette.empty()) {
    for (size_t step = 0; step < steps; ++step) {
      alignas(64) uint8_t bytes[kLanes];
      assemble_step<Target>(plane, tile.raw + (first + step) * stride,
                            classes + step * kLanes, bytes);
      Target::look_up(tables.palette.data(), bytes);
      for (size_t i = 0; i < kLanes; ++i) out[step * kLanes + i] = bytes[i];
    }
  } else if (sizeof(Value) > 1 || !is_class_itself(plane)) {
    for (size_t step = 0; step < steps; ++step) {
      assemble_step<Target>(plane, tile.raw + (first + step) * stride,
                            classes + step * kLanes, out + step * kLanes);
    }
  }
  const uint64_t begin = first * kLanes;
  const uint64_t end = begin + steps * kLanes;
  while (*next_exception < tile.n_exceptions) {
    const Exception exception = tile.exception(*next_exception);
    if (exception.index >= end) break;
    out[exception.index - begin] = static_cast<Value>(exception.value);
    ++*next_exception;
  }
}

}  // namespace
}  // namespace mlx_entropy::body
