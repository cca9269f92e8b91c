// The loops over steps of the targets with 512-bit registers. Included by each
// of them inside its target region, after its Tables16, Lanes16, load_lanes,
// store_lanes, step16 and step32.
#pragma once

namespace mlx_entropy {
// Internal to each target: the same name compiled for two targets must not
// be merged by the linker.
namespace {

struct Avx512Streams {
  template <int V>
  static void decode16(uint8_t (*states)[256], const uint8_t** streams,
                       const AliasTable& table, size_t steps,
                       uint8_t* const* out) {
    const Tables16 tables(table);
    Lanes16 x[V];
    const uint8_t* p[V];
    uint8_t* to[V];
    for (int v = 0; v < V; ++v) {
      x[v] = load_lanes(states[v]);
      p[v] = streams[v];
      to[v] = out[v];
    }
    for (size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        _mm512_storeu_si512(to[v] + step * kLanes,
                            step16(&x[v], &p[v], tables));
      }
    }
    for (int v = 0; v < V; ++v) {
      store_lanes(x[v], states[v]);
      streams[v] = p[v];
    }
  }

  template <int V>
  static void decode32(uint8_t (*states)[256], const uint8_t** streams,
                       const uint32_t* slots, size_t steps,
                       uint8_t* const* out) {
    for (int v = 0; v < V; ++v) {
      __m512i x[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_load_si512(states[v] + 64 * i);
      }
      const uint8_t* p = streams[v];
      for (size_t step = 0; step < steps; ++step) {
        for (int i = 0; i < 4; ++i) {
          __m128i symbols;
          x[i] = step32(x[i], &p, slots, &symbols);
          _mm_storeu_si128(
              reinterpret_cast<__m128i*>(out[v] + step * kLanes + 16 * i),
              symbols);
        }
      }
      for (int i = 0; i < 4; ++i) {
        _mm512_store_si512(states[v] + 64 * i, x[i]);
      }
      streams[v] = p;
    }
  }
};

}  // namespace
}  // namespace mlx_entropy
