// Times products of ggml, llama.cpp's tensor library, as a peer to compare
// with: one matrix of a quantized type times a batch of rows.
//
//   ggml-peer --type q4_K --rows 14336 --cols 4096 --copies 8 \
//             --batch 1 --threads 2 [--repeat 20] [--layout auto|plain|repack]
//   ggml-peer ... --serve
//
// There are `copies` matrices of the shape, and products go through them in
// turn, so that matrices come from memory and not from a cache when they are
// together larger than it. The matrices are in the layout that llama.cpp gives
// them when it loads a model ("repack" where it has one for the type).
//
// Prints one JSON object. With --serve, prints what it set up, then reads lines
// "BATCH THREADS PRODUCTS" and answers each with {"seconds": ...}, the time of
// one product, until its input ends: a caller can so take turns with it.

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <strings.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

struct Options {
  std::string type = "q4_0";
  std::string layout = "auto";
  int64_t rows = 4096;
  int64_t cols = 4096;
  int64_t batch = 1;
  int copies = 1;
  int threads = 1;
  int repeat = 20;
  int products = 0;  // A sample; 0: as many as there are copies.
  bool serve = false;
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "ggml-peer: %s\n", what.c_str());
  std::exit(2);
}

int64_t positive(const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (end == text || *end != '\0' || value < 1) {
    fail(std::string(text) + " is no positive integer");
  }
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--serve") {
      options.serve = true;
      continue;
    }
    if (i + 1 == argc) {
      fail(name + " needs a value");
    }
    const char* value = argv[++i];
    if (name == "--type") {
      options.type = value;
    } else if (name == "--layout") {
      options.layout = value;
    } else if (name == "--rows") {
      options.rows = positive(value);
    } else if (name == "--cols") {
      options.cols = positive(value);
    } else if (name == "--batch") {
      options.batch = positive(value);
    } else if (name == "--copies") {
      options.copies = static_cast<int>(positive(value));
    } else if (name == "--threads") {
      options.threads = static_cast<int>(positive(value));
    } else if (name == "--repeat") {
      options.repeat = static_cast<int>(positive(value));
    } else if (name == "--products") {
      options.products = static_cast<int>(positive(value));
    } else {
      fail("unknown option " + name);
    }
  }
  return options;
}

ggml_type find_type(const std::string& name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    const char* known = ggml_type_name(type);
    if (known != nullptr && strcasecmp(known, name.c_str()) == 0 &&
        ggml_blck_size(type) > 0) {
      return type;
    }
  }
  fail("no type " + name);
}

std::vector<float> gaussian(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

// A matrix of quantized Gaussian weights. Its rows repeat after a while,
// because quantizing is slow for some types, and no kernel's time depends on
// the values.
std::vector<char> quantized(ggml_type type, int64_t rows, int64_t cols) {
  const int64_t distinct = std::min<int64_t>(rows, 32);
  const std::vector<float> values = gaussian(distinct * cols, 1);
  const std::vector<float> importance(cols, 1.0F);
  const size_t row_bytes = ggml_row_size(type, cols);
  std::vector<char> data(row_bytes * rows);
  if (type == GGML_TYPE_F32) {
    std::memcpy(data.data(), values.data(), row_bytes * distinct);
  } else {
    ggml_quantize_chunk(type, values.data(), data.data(), 0, distinct, cols,
                        importance.data());
  }
  for (int64_t row = distinct; row < rows; ++row) {
    std::memcpy(data.data() + row * row_bytes,
                data.data() + (row % distinct) * row_bytes, row_bytes);
  }
  return data;
}

// The layouts that llama.cpp prefers to the plain one, best first.
std::vector<ggml_backend_buffer_type_t> extra_layouts(ggml_backend_dev_t dev) {
  std::vector<ggml_backend_buffer_type_t> found;
  auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev),
                                        "ggml_backend_dev_get_extra_bufts"));
  if (get != nullptr) {
    for (ggml_backend_buffer_type_t* each = get(dev);
         each != nullptr && *each != nullptr; ++each) {
      found.push_back(*each);
    }
  }
  return found;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        type_(find_type(options.type)),
        backend_(ggml_backend_cpu_init()) {
    if (options.cols % ggml_blck_size(type_) != 0) {
      fail("columns must be a multiple of " +
           std::to_string(ggml_blck_size(type_)));
    }
    const ggml_init_params params = {
        ggml_tensor_overhead() * (options.copies + 8), nullptr, true};
    context_ = ggml_init(params);
    for (int i = 0; i < options.copies; ++i) {
      weights_.push_back(
          ggml_new_tensor_2d(context_, type_, options.cols, options.rows));
    }
    place();
    const std::vector<char> data = quantized(type_, options.rows, options.cols);
    for (ggml_tensor* weight : weights_) {
      ggml_backend_tensor_set(weight, data.data(), 0, data.size());
    }
  }

  // Seconds of one product, over `products` of them.
  double run(int64_t batch, int threads, int products) {
    reserve(batch);
    const size_t nodes = static_cast<size_t>(products);
    const ggml_init_params params = {
        ggml_tensor_overhead() * (nodes + 2) +
            ggml_graph_overhead_custom(nodes + 2, false),
        nullptr, true};
    ggml_context* context = ggml_init(params);
    ggml_tensor* x =
        ggml_new_tensor_2d(context, GGML_TYPE_F32, options_.cols, batch);
    ggml_backend_tensor_alloc(x_, x, ggml_backend_buffer_get_base(x_));
    ggml_cgraph* graph = ggml_new_graph_custom(context, nodes + 2, false);
    for (int i = 0; i < products; ++i) {
      ggml_tensor* weight = weights_[next_++ % weights_.size()];
      ggml_tensor* y = ggml_mul_mat(context, weight, x);
      // All products write the same memory: nothing reads it.
      ggml_backend_tensor_alloc(y_, y, ggml_backend_buffer_get_base(y_));
      ggml_build_forward_expand(graph, y);
    }
    ggml_backend_cpu_set_n_threads(backend_, threads);
    const auto started = std::chrono::steady_clock::now();
    if (ggml_backend_graph_compute(backend_, graph) != GGML_STATUS_SUCCESS) {
      fail("the product failed");
    }
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - started;
    ggml_free(context);
    return seconds.count() / products;
  }

  std::string describe() const {
    char text[512];
    const auto nbytes = static_cast<long long>(ggml_nbytes(weights_[0]));
    std::snprintf(
        text, sizeof text,
        "\"type\": \"%s\", \"layout\": \"%s\", \"rows\": %lld, \"cols\": %lld, "
        "\"copies\": %d, \"nbytes\": %lld, "
        "\"features\": {\"avx2\": %s, \"avx512\": %s, \"avx512_vbmi\": %s, "
        "\"avx512_vnni\": %s, \"avx512_bf16\": %s, \"amx_int8\": %s}",
        ggml_type_name(type_), layout_.c_str(),
        static_cast<long long>(options_.rows),
        static_cast<long long>(options_.cols), options_.copies, nbytes,
        flag(ggml_cpu_has_avx2()), flag(ggml_cpu_has_avx512()),
        flag(ggml_cpu_has_avx512_vbmi()), flag(ggml_cpu_has_avx512_vnni()),
        flag(ggml_cpu_has_avx512_bf16()), flag(ggml_cpu_has_amx_int8()));
    return text;
  }

 private:
  static const char* flag(int value) { return value != 0 ? "true" : "false"; }

  // Allocates the matrices in the first layout that has kernels for them.
  void place() {
    ggml_backend_dev_t dev = ggml_backend_get_device(backend_);
    if (options_.layout != "plain") {
      for (ggml_backend_buffer_type_t layout : extra_layouts(dev)) {
        if (supports(dev, layout)) {
          layout_ = "repack";
          allocate(layout);
          return;
        }
      }
      if (options_.layout == "repack") {
        fail("no repacked layout for " + options_.type);
      }
    }
    layout_ = "plain";
    allocate(ggml_backend_get_default_buffer_type(backend_));
  }

  void allocate(ggml_backend_buffer_type_t layout) {
    if (ggml_backend_alloc_ctx_tensors_from_buft(context_, layout) == nullptr) {
      fail("not enough memory for the matrices");
    }
  }

  // As llama.cpp asks: about a product whose matrix lies in such a buffer.
  bool supports(ggml_backend_dev_t dev,
                ggml_backend_buffer_type_t layout) const {
    const ggml_init_params params = {ggml_tensor_overhead() * 8, nullptr, true};
    ggml_context* context = ggml_init(params);
    ggml_tensor* w =
        ggml_new_tensor_2d(context, type_, options_.cols, options_.rows);
    ggml_tensor* x =
        ggml_new_tensor_2d(context, GGML_TYPE_F32, options_.cols, 512);
    ggml_tensor* y = ggml_mul_mat(context, w, x);
    w->buffer = ggml_backend_buft_alloc_buffer(layout, 0);
    const bool supported = ggml_backend_dev_supports_op(dev, y);
    ggml_backend_buffer_free(w->buffer);
    ggml_free(context);
    return supported;
  }

  void reserve(int64_t batch) {
    if (batch <= reserved_) {
      return;
    }
    if (reserved_ > 0) {
      ggml_backend_buffer_free(x_);
      ggml_backend_buffer_free(y_);
    }
    auto layout = ggml_backend_get_default_buffer_type(backend_);
    x_ = ggml_backend_buft_alloc_buffer(layout,
                                        batch * options_.cols * 4 + 4096);
    y_ = ggml_backend_buft_alloc_buffer(layout,
                                        batch * options_.rows * 4 + 4096);
    if (x_ == nullptr || y_ == nullptr) {
      fail("not enough memory for the batch");
    }
    const std::vector<float> values = gaussian(batch * options_.cols, 2);
    std::memcpy(ggml_backend_buffer_get_base(x_), values.data(),
                values.size() * 4);
    std::memset(ggml_backend_buffer_get_base(y_), 0, batch * options_.rows * 4);
    reserved_ = batch;
  }

  Options options_;
  ggml_type type_;
  ggml_backend_t backend_;
  ggml_context* context_ = nullptr;
  std::vector<ggml_tensor*> weights_;
  std::string layout_;
  ggml_backend_buffer_t x_ = nullptr;
  ggml_backend_buffer_t y_ = nullptr;
  int64_t reserved_ = 0;
  size_t next_ = 0;
};

int serve(Bench& bench) {
  std::printf("{%s}\n", bench.describe().c_str());
  std::fflush(stdout);
  char line[128];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    long long batch = 0;
    int threads = 0;
    int products = 0;
    if (std::sscanf(line, "%lld %d %d", &batch, &threads, &products) != 3 ||
        batch < 1 || threads < 1 || products < 1) {
      fail("not BATCH THREADS PRODUCTS: " + std::string(line));
    }
    std::printf("{\"seconds\": %.9g}\n", bench.run(batch, threads, products));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  // ggml tells about each matrix that it repacks.
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  Bench bench(options);
  if (options.serve) {
    return serve(bench);
  }
  const int products = options.products > 0 ? options.products : options.copies;
  bench.run(options.batch, options.threads, products);  // Warms up.
  std::vector<double> samples;
  for (int i = 0; i < options.repeat; ++i) {
    samples.push_back(bench.run(options.batch, options.threads, products));
  }
  std::sort(samples.begin(), samples.end());
  const size_t half = samples.size() / 2;
  const double median = samples.size() % 2 == 1
                            ? samples[half]
                            : (samples[half - 1] + samples[half]) / 2;
  std::printf(
      "{%s, \"batch\": %lld, \"threads\": %d, \"repetitions\": %d, "
      "\"seconds\": %.9g, \"fastest\": %.9g, \"slowest\": %.9g}\n",
      bench.describe().c_str(), static_cast<long long>(options.batch),
      options.threads, options.repeat, median, samples.front(), samples.back());
  return 0;
}
