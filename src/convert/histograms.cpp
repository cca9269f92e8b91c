#include "convert/histograms.h"

#include <mutex>

#include "base/bits.h"
#include "base/thread_pool.h"

namespace mlx_entropy {

std::vector<PlaneHistogram> make_histograms(const MatrixHeader& header) {
  std::vector<PlaneHistogram> histograms;
  for (const Plane& plane : header.planes) {
    histograms.emplace_back(plane.kind, header.value_bits(plane));
  }
  return histograms;
}

void count_range(const PlaneSource& source, size_t plane, uint64_t first,
                 uint64_t count, PlaneHistogram* histogram) {
  if (const uint8_t* const bytes = source.bytes(plane)) {
    histogram->add(bytes + first, count);
    return;
  }
  // In pieces small enough for the cache.
  constexpr size_t kPiece = 8192;
  uint32_t values[kPiece];
  for (uint64_t done = 0; done < count; done += kPiece) {
    const auto n =
        static_cast<size_t>(std::min<uint64_t>(kPiece, count - done));
    source.read(plane, first + done, n, values);
    histogram->add(values, n);
  }
}

std::vector<PlaneHistogram> count_values(const PlaneSource& source,
                                         const MatrixHeader& header) {
  const uint64_t tasks =
      std::min<uint64_t>(4 * ThreadPool::instance().size(), header.rows);
  const uint64_t unit = row_unit(header.cols);
  const uint64_t rows_per_task =
      ceil_div(ceil_div(header.rows, tasks), unit) * unit;
  std::vector<PlaneHistogram> total = make_histograms(header);
  std::mutex mutex;
  ThreadPool::instance().run(
      ceil_div(header.rows, rows_per_task), [&](size_t task) {
        const uint64_t row = task * rows_per_task;
        const uint64_t rows = std::min(rows_per_task, header.rows - row);
        std::vector<PlaneHistogram> mine = make_histograms(header);
        for (size_t p = 0; p < header.planes.size(); ++p) {
          const Plane& plane = header.planes[p];
          count_range(source, p, header.values(plane, row),
                      header.values(plane, rows), &mine[p]);
        }
        std::lock_guard lock(mutex);
        for (size_t p = 0; p < total.size(); ++p) total[p].merge(mine[p]);
      });
  return total;
}

}  // namespace mlx_entropy
