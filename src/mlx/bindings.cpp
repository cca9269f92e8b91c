// The Python module mlx_entropy._ext. Docstrings are in _ext.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "base/bandwidth.h"
#include "base/cpu_features.h"
#include "base/hash.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "mlx/arrays.h"
#include "mlx/codec_api.h"
#include "mlx/coded_ops.h"
#include "mlx/llama_ops.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_entropy {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

void bind_info(nb::module_& m) {
  nb::class_<PlaneInfo>(m, "PlaneInfo")
      .def_ro("name", &PlaneInfo::name)
      .def_ro("classes", &PlaneInfo::classes)
      .def_ro("raw_bits", &PlaneInfo::raw_bits)
      .def_ro("base", &PlaneInfo::base)
      .def_ro("frequencies", &PlaneInfo::frequencies)
      .def_ro("exceptions", &PlaneInfo::exceptions)
      .def_ro("count", &PlaneInfo::count);
  nb::class_<CodedInfo>(m, "CodedInfo")
      .def_ro("scheme", &CodedInfo::scheme)
      .def_ro("codec", &CodedInfo::codec)
      .def_ro("rows", &CodedInfo::rows)
      .def_ro("cols", &CodedInfo::cols)
      .def_ro("bits", &CodedInfo::bits)
      .def_ro("group_size", &CodedInfo::group_size)
      .def_ro("dtype", &CodedInfo::dtype)
      .def_ro("tile_rows", &CodedInfo::tile_rows)
      .def_ro("tiles", &CodedInfo::tiles)
      .def_ro("nbytes", &CodedInfo::nbytes)
      .def_ro("planes", &CodedInfo::planes);
  nb::class_<RansTable>(m, "RANSTable")
      .def_static("from_counts", &RansTable::from_counts, "counts"_a)
      .def_ro("frequencies", &RansTable::frequencies)
      .def_prop_ro("precision_bits", &RansTable::precision_bits)
      .def("cost", &RansTable::cost, "counts"_a);
}

void bind_codec(nb::module_& m) {
  m.def("entropy_encode", &entropy_encode, "symbols"_a,
        "table"_a.none() = nb::none(), nb::kw_only(), "tile_rows"_a = 0,
        Released());
  m.def("entropy_decode", &entropy_decode, "coded"_a, nb::kw_only(),
        "row_start"_a = 0, "row_stop"_a = nb::none(), Released());
  m.def(
      "encode_affine",
      [](mx::array weight, mx::array scales, std::optional<mx::array> biases,
         int group_size, int bits, int tile_rows, int block_rows) {
        if (!biases) fail("encode_affine", "affine weights have biases");
        return encode_affine(std::move(weight), std::move(scales),
                             std::move(*biases), group_size, bits, tile_rows,
                             block_rows);
      },
      "weight"_a, "scales"_a, "biases"_a.none(), "group_size"_a, "bits"_a,
      nb::kw_only(), "tile_rows"_a = 0, "block_rows"_a = 0, Released());
  m.def(
      "decode_affine",
      [](mx::array coded, int64_t row_start, std::optional<int64_t> row_stop) {
        std::vector<mx::array> arrays;
        {
          nb::gil_scoped_release release;
          arrays = decode_affine(std::move(coded), row_start, row_stop);
        }
        return nb::make_tuple(arrays[0], arrays[1], arrays[2]);
      },
      "coded"_a, nb::kw_only(), "row_start"_a = 0, "row_stop"_a = nb::none());
  m.def("encode_float", &encode_float, "weight"_a, nb::kw_only(),
        "tile_rows"_a = 0, "block_rows"_a = 0, Released());
  m.def("decode_float", &decode_float, "coded"_a, nb::kw_only(),
        "row_start"_a = 0, "row_stop"_a = nb::none(), Released());
  nb::class_<CodecChoice>(m, "CodecChoice")
      .def_prop_ro("codec",
                   [](const CodecChoice& choice) {
                     return choice.codec == Codec::kRans        ? "rans"
                            : choice.pass_cost == kFlatPassCost ? "flat"
                                                                : "tree";
                   })
      .def_ro("pass_cost", &CodecChoice::pass_cost)
      .def_ro("bits_per_weight", &CodecChoice::bits)
      .def_ro("merges", &CodecChoice::merges)
      .def_ro("nanoseconds_per_weight", &CodecChoice::time);
  m.def("transcode", &transcode_array, "coded"_a, "codec"_a = "auto",
        nb::kw_only(), "pass_cost"_a = nb::none(), Released());
  m.def("rank_codecs", &rank_codecs_array, "coded"_a, Released());
  m.def("machine_model", [] {
    MachineModel machine;
    {
      nb::gil_scoped_release release;
      machine = machine_model();
    }
    nb::dict out;
    out["target"] = machine.target;
    out["threads"] = machine.threads;
    out["rans_nanoseconds"] = machine.rans;
    out["tree_nanoseconds"] = machine.tree;
    out["merge_nanoseconds"] = machine.tree_merge;
    out["bytes_per_nanosecond"] = machine.bandwidth;
    out["file"] = machine.file;
    return out;
  });
  m.def("validate", &validate_array, "coded"_a, Released());
  m.def("describe", &describe_array, "coded"_a, Released());
  m.def(
      "plane_entropies",
      [](mx::array coded) {
        std::vector<std::pair<std::string, double>> entropies;
        {
          nb::gil_scoped_release release;
          entropies = plane_entropies_array(std::move(coded));
        }
        nb::dict out;
        for (const auto& [name, bits] : entropies) out[name.c_str()] = bits;
        return out;
      },
      "coded"_a);
}

void bind_ops(nb::module_& m) {
  m.def("entropy_coded_matmul", &entropy_coded_matmul, "x"_a, "coded"_a,
        "output_dims"_a, nb::kw_only(), "stream"_a = nb::none());
  m.def("entropy_coded_gather_matmul", &entropy_coded_gather_matmul, "x"_a,
        "coded"_a, "indices"_a, "output_dims"_a, nb::kw_only(),
        "stream"_a = nb::none());
  m.def("entropy_coded_embedding", &entropy_coded_embedding, "indices"_a,
        "coded"_a, "dims"_a, "dtype"_a, nb::kw_only(), "stream"_a = nb::none());
  m.def("entropy_dequantize", &entropy_dequantize, "coded"_a, "rows"_a,
        "cols"_a, "dtype"_a, nb::kw_only(), "stream"_a = nb::none());
}

// Seconds a region of the thread pool takes whose tasks do nothing or, with
// `handover`, wait until every thread has one.
double time_regions(int regions, bool handover) {
  using Clock = std::chrono::steady_clock;
  ThreadPool& pool = ThreadPool::instance();
  const size_t threads = pool.size();
  // Threads may be fewer than asked for.
  constexpr auto kPatience = std::chrono::milliseconds(20);
  constexpr int kLooks = 1000;
  std::atomic<size_t> arrived{0};
  const Clock::time_point start = Clock::now();
  for (int region = 0; region < regions; ++region) {
    arrived = 0;
    pool.run(threads, [&](size_t) {
      if (!handover) return;
      ++arrived;
      const Clock::time_point end = Clock::now() + kPatience;
      // Where there are more threads than CPUs, one has to make room.
      for (int look = 1; arrived < threads && Clock::now() < end; ++look) {
        if (look % kLooks == 0) std::this_thread::yield();
      }
    });
  }
  return std::chrono::duration<double>(Clock::now() - start).count() /
         std::max(1, regions);
}

// Whether any of the arrays stands for others while MLX records a function to
// differentiate, vectorize or compile it.
bool is_traced(const std::vector<mx::array>& arrays) {
  return std::any_of(arrays.begin(), arrays.end(),
                     [](const mx::array& array) { return array.is_tracer(); });
}

void bind_llama(nb::module_& m) {
  m.def("is_traced", &is_traced, "arrays"_a);
  nb::class_<FusedLlama>(m, "FusedLlama")
      .def(
          "__init__",
          [](FusedLlama* self, std::vector<mx::array> coded,
             std::vector<std::optional<mx::array>> biases,
             std::vector<mx::array> norms, std::vector<mx::array> head_norms,
             mx::array inverse_frequencies, int heads, int kv_heads,
             int head_dim, float eps, float attention_scale, float rope_scale,
             bool rope_traditional) {
            nb::gil_scoped_release release;
            new (self) FusedLlama(
                coded, biases, norms, head_norms, inverse_frequencies,
                {heads, kv_heads, head_dim, eps, attention_scale, rope_scale,
                 rope_traditional});
          },
          "coded"_a, "biases"_a, "norms"_a, "head_norms"_a,
          "inverse_frequencies"_a, nb::kw_only(), "heads"_a, "kv_heads"_a,
          "head_dim"_a, "eps"_a, "attention_scale"_a, "rope_scale"_a = 1.0f,
          "rope_traditional"_a = false)
      .def("__call__", &FusedLlama::step, "x"_a, "keys"_a, "values"_a,
           "offset"_a, "capacity"_a, nb::kw_only(), "stream"_a = nb::none());
}

// XXH64 of any object with a contiguous buffer.
uint64_t hash_buffer(nb::handle object) {
  Py_buffer view;
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_SIMPLE) != 0) {
    throw nb::python_error();
  }
  uint64_t hash = 0;
  {
    nb::gil_scoped_release release;
    hash = xxh64(static_cast<const uint8_t*>(view.buf),
                 static_cast<size_t>(view.len));
  }
  PyBuffer_Release(&view);
  return hash;
}

void bind_machine(nb::module_& m) {
  m.def("xxh64", &hash_buffer, "data"_a);
  m.def("targets", [] {
    std::vector<std::string> names;
    for (const KernelTable* target : available_targets()) {
      names.emplace_back(target->name);
    }
    return names;
  });
  m.def("target", [] { return std::string(active_target().name); });
  m.def(
      "set_target",
      [](const std::string& name) {
        const Status status = set_target(name);
        if (!status.ok()) fail("set_target", status.message());
      },
      "name"_a);
  m.def("cpu_features", [] {
    const CpuFeatures& cpu = cpu_features();
    nb::dict out;
    out["avx2"] = cpu.avx2;
    out["avx512"] = cpu.avx512;
    out["avx512_vbmi2"] = cpu.avx512_vbmi;
    out["avx512_vnni"] = cpu.avx512_vnni;
    out["neon"] = cpu.neon;
    return out;
  });
  m.def("num_threads", [] { return ThreadPool::instance().size(); });
  m.def("threads_source",
        [] { return std::string(ThreadPool::instance().count().source); });
  m.def("time_regions", &time_regions, "regions"_a, nb::kw_only(), "handover"_a,
        Released());
  m.def(
      "set_num_threads",
      [](int count) {
        if (count < 0 || count > 4096) {
          fail("set_num_threads", "expected 0 to 4096");
        }
        ThreadPool::instance().resize(static_cast<size_t>(count));
      },
      "count"_a);
  m.def(
      "read_bandwidth",
      [](int64_t nbytes, int passes) {
        if (nbytes < 1 || passes < 1) {
          fail("read_bandwidth", "expected positive numbers");
        }
        nb::gil_scoped_release release;
        return read_bandwidth(static_cast<size_t>(nbytes),
                              static_cast<size_t>(passes));
      },
      "nbytes"_a, "passes"_a = 5);
}

}  // namespace
}  // namespace mlx_entropy

NB_MODULE(_ext, m) {
  mlx_entropy::bind_info(m);
  mlx_entropy::bind_codec(m);
  mlx_entropy::bind_ops(m);
  mlx_entropy::bind_llama(m);
  mlx_entropy::bind_machine(m);
}
