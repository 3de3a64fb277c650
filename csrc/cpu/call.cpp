// One call: which kernel, on how many threads, and the sums of the rows' values.
#include <stdlib.h>

#include "cpu.h"
#include "kernels.h"

namespace kdengine::cpu {
namespace {

constexpr int64_t kFewClasses = 128;
constexpr int64_t kLargestLane = 2048;          // classes: sixteen rows' arrays stay in the caches
constexpr int64_t kTaskElements = 16384;        // less than this is not worth a thread
constexpr int64_t kStreamBytes = 8 << 20;       // larger gradients would only drive the rest out of the caches

class Buffer {
 public:
  ~Buffer() { free(memory_); }
  void* at_least(size_t bytes) {
    if (bytes > size_) {
      free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = aligned_alloc(4096, size_);
      if (memory_ == nullptr) abort();
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

void* values_memory(size_t bytes) {
  static thread_local Buffer buffer;
  return buffer.at_least(bytes);
}

void* columns_memory(size_t bytes) {
  static thread_local Buffer buffer;
  return buffer.at_least(bytes);
}

using Range = void (*)(const Job&, int64_t, int64_t);

struct RangeTask {
  const Job* job;
  Range range;
};

void run_range(int64_t begin, int64_t end, void* context) {
  const RangeTask& task = *(const RangeTask*)context;
  task.range(*task.job, begin, end);
}

// `elements` is what one of `count` units costs.
void spread(const Parallel& parallel, int64_t count, int64_t elements, void (*body)(int64_t, int64_t, void*),
            void* context) {
  const int64_t grain = elements >= kTaskElements ? 1 : kTaskElements / (elements > 0 ? elements : 1);
  if (count <= grain || parallel.threads <= 1) {
    body(0, count, context);
  } else {
    parallel.run(0, count, grain, body, context);
  }
}

// Few rows of many classes: their chunks are spread over threads, with a barrier between sums and gradient.
struct ColumnsTask {
  const Job* job;
  const Kernels* kernels;
  Row* rows;
  int64_t chunks;  // of each row
};

void run_sums(int64_t begin, int64_t end, void* context) {
  const ColumnsTask& task = *(const ColumnsTask*)context;
  for (int64_t i = begin; i < end; ++i) {
    task.kernels->chunk_sums(*task.job, task.rows[i / task.chunks], i % task.chunks);
  }
}

void run_gradients(int64_t begin, int64_t end, void* context) {
  const ColumnsTask& task = *(const ColumnsTask*)context;
  for (int64_t i = begin; i < end; ++i) {
    task.kernels->chunk_gradient(*task.job, task.rows[i / task.chunks], i % task.chunks);
  }
}

int64_t blocks_of(const Problem& p) { return (p.student.classes + kBlock - 1) / kBlock; }

bool splits_columns(const Job& job, const Parallel& parallel) {
  if (!suits_blocks(*job.problem) || blocks_of(*job.problem) <= kChunk) return false;
  return job.rows < 2 * parallel.threads && job.rows % parallel.threads != 0;
}

void run_columns(const Job& job, const Kernels& kernels, const Parallel& parallel) {
  const Problem& p = *job.problem;
  const int64_t blocks = blocks_of(p), size = blocks * kBlock;
  const size_t of_row = sizeof(Row) + blocks * sizeof(Block) + 3 * size * sizeof(float);
  char* memory = (char*)columns_memory(job.rows * of_row);
  float* numbers = (float*)memory;
  Block* block = (Block*)(numbers + job.rows * 3 * size);
  Row* rows = (Row*)(block + job.rows * blocks);
  int64_t count = 0;
  for (int64_t r = 0; r < job.rows; ++r) {
    RowTerms terms;
    if (row_terms(job, r, terms) != kNoFault || !terms.soft) {
      kernels.rows(job, r, r + 1);
      continue;
    }
    const bool own = terms.hard && power_of(terms.temperature) == 0;
    rows[count++] = {terms, r,     p.student.classes, numbers, numbers + size, own ? numbers + 2 * size : nullptr,
                     block, blocks, 0,                 0};
    numbers += 3 * size;
    block += blocks;
  }
  ColumnsTask task = {&job, &kernels, rows, (blocks + kChunk - 1) / kChunk};
  spread(parallel, count * task.chunks, kChunk * kBlock, run_sums, &task);
  for (int64_t i = 0; i < count; ++i) fold(job, rows[i]);
  if (p.student_gradient.data == nullptr) return;
  spread(parallel, count * task.chunks, kChunk * kBlock, run_gradients, &task);
}

void run(const Job& job, const Kernels& kernels, const Parallel& parallel) {
  const Problem& p = *job.problem;
  const int64_t classes = p.student.classes > p.teacher.classes ? p.student.classes : p.teacher.classes;
  if (suits_lanes(p)) {
    RangeTask task = {&job, kernels.lanes};
    return spread(parallel, lane_groups(p), kLanes * classes, run_range, &task);
  }
  if (splits_columns(job, parallel)) return run_columns(job, kernels, parallel);
  RangeTask task = {&job, p.wide ? wide_rows : kernels.rows};
  spread(parallel, job.rows, classes, run_range, &task);
}

// Adds up in an order that depends on nothing but the number of rows; four sums hide the addition's latency.
double sum_of(const double* values, int64_t rows) {
  double sums[4] = {0, 0, 0, 0};
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int k = 0; k < 4; ++k) sums[k] += values[2 * (r + k)];
  }
  for (; r < rows; ++r) sums[r & 3] += values[2 * r];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
void put(const Problem& p, int64_t i, double soft, double hard) {
  const T of_soft = (T)soft, of_hard = (T)hard;
  if (p.loss != nullptr) ((T*)p.loss)[i] = of_soft + of_hard;
  if (p.soft_term != nullptr) ((T*)p.soft_term)[i] = of_soft;
  if (p.hard_term != nullptr) ((T*)p.hard_term)[i] = of_hard;
}

template <class T>
void reduce(const Job& job) {
  const Problem& p = *job.problem;
  if (p.reduction != Reduction::none) {
    return put<T>(p, 0, sum_of(job.values, job.rows), sum_of(job.values + 1, job.rows));
  }
  for (int64_t r = 0; r < job.rows; ++r) put<T>(p, r, job.values[2 * r], job.values[2 * r + 1]);
}

int64_t bytes_of(const Matrix& m, int64_t rows) {
  return m.data == nullptr ? 0 : rows * m.classes * size_of(m.dtype);
}

}  // namespace

void* scratch(size_t bytes) {
  static thread_local Buffer buffer;
  return buffer.at_least(bytes);
}

void add_fault(const Job& job, uint32_t fault) { __atomic_fetch_or(job.faults, fault, __ATOMIC_RELAXED); }

bool suits_blocks(const Problem& p) {
  const bool plain = p.soft && !p.wide && p.divergence == Divergence::forward_kl && p.indices == nullptr;
  const bool ids = !p.hard || (p.labels != nullptr && p.smoothing == 0);
  return plain && ids && p.teacher_gradient.data == nullptr && p.student.classes == p.teacher.classes;
}

bool lanes_in_memory(const Problem& p) { return p.inner >= kLanes && p.student.inner == 1 && p.teacher.inner == 1; }

bool suits_lanes(const Problem& p) {
  return suits_blocks(p) && p.student.classes <= (lanes_in_memory(p) ? kLargestLane : kFewClasses);
}

int64_t lane_groups(const Problem& p) {
  if (lanes_in_memory(p)) return p.outer * ((p.inner + kLanes - 1) / kLanes);
  return (p.outer * p.inner + kLanes - 1) / kLanes;
}

uint32_t kd_loss(const Problem& problem, const Parallel& parallel) {
  const int64_t rows = problem.outer * problem.inner;
  uint32_t faults = kNoFault;
  double* const values = (double*)values_memory(rows * 2 * sizeof(double));
  const int64_t soft_rows = count_rows(problem, rows, false);
  const int64_t hard_rows = problem.hard ? count_rows(problem, rows, true) : 1;
  const bool stream = bytes_of(problem.student_gradient, rows) > kStreamBytes;
  const Job job = {&problem, rows, soft_rows, hard_rows, stream, values, &faults};
  if (rows > 0) run(job, *kernels(), parallel);
  if (problem.wide) {
    reduce<double>(job);
  } else {
    reduce<float>(job);
  }
  return faults;
}

}  // namespace kdengine::cpu
