// What the call (call.cpp) and the kernels of one instruction set hand to each other.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../problem.h"

// The sweeps are one loop each: left to itself the compiler calls what they are made of.
#define KDENGINE_INLINE inline __attribute__((always_inline))

namespace kdengine::cpu {

// Bytes of a number.
KDENGINE_INLINE int64_t size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// What one row needs from each term.
struct RowTerms {
  bool soft;
  bool hard;
  double temperature;
  double soft_scale;  // weight / divisor
  double hard_scale;
  int64_t label;  // -1: labels are probabilities, or there is no hard term
};

// One problem and what has been derived from it.
struct Job {
  const Problem* problem;
  int64_t rows;
  int64_t soft_rows;  // a term's rows that its mean divides by
  int64_t hard_rows;
  bool stream;       // the gradient is too large for the caches: store around them
  double* values;    // soft and hard value of every row, in pairs
  uint32_t* faults;  // of all threads, combined atomically
};

// Rows of a group in the lanes kernel.
constexpr int kLanes = 16;

struct LaneTerms {
  float temperature[kLanes];
  float soft_scale[kLanes];  // 0: the row takes no part
  float hard_scale[kLanes];
  float label[kLanes];  // -1: none
  bool soft[kLanes];
  bool hard[kLanes];
  bool filled;      // by a group of which the next one differs in labels at most
  uint32_t faults;  // of that, but for labels
};

// Reads what row r needs, or the rows from `first` on; returns the faults found there.
uint32_t row_terms(const Job& job, int64_t r, RowTerms& terms);
uint32_t lane_terms(const Job& job, int64_t first, int count, LaneTerms& terms);
int64_t count_rows(const Problem& problem, int64_t rows, bool hard);  // 1 but for a mean
void add_fault(const Job& job, uint32_t fault);

// Memory of this thread that lasts from call to call, aligned to 64 bytes.
void* scratch(size_t bytes);

// Rows are cut into blocks of kBlock classes, and references restart every kChunk blocks: a chunk is the unit that
// columns are spread over threads by.
constexpr int kBlock = 2048;
constexpr int kChunk = 16;

// One block: its references (maxima of the chunk up to here), its sums, and what its gradient is made of.
struct Block {
  float student_max;
  float teacher_max;
  double a;  // A, B, D, Q of docs/kernels.md
  double b;
  double d;
  double q;
  double e;           // sum of exp(s - student_max) without the label's class
  double scales[4];   // alpha, alpha - beta, beta, and alpha at temperature 1
  float from_d;       // gradient = from_d d + from_b b + from_e e
  float from_b;
  float from_e;
};

// A row in work: the scratch that holds d, b and e of each class, and its blocks.
struct Row {
  RowTerms terms;
  int64_t index;
  int64_t classes;
  float* d;
  float* b;
  float* e;  // null where e is a power of a
  Block* blocks;
  int64_t block_count;
  float label_logit;
  float label_gradient;  // what the hard term adds at the label
};

// Combines the blocks of a row into its values, which it stores in the job, and sets what the gradient is made of.
void fold(const Job& job, Row& row);

// e is a to this power, or 0: an exponential of its own.
inline constexpr int power_of(double temperature) {
  return temperature == 1 ? 1 : temperature == 2 ? 2 : temperature == 4 ? 4 : 0;
}

// Kernels of one instruction set. Ranges are of rows, or of groups for `lanes`.
struct Kernels {
  const char* name;
  void (*rows)(const Job& job, int64_t begin, int64_t end);
  void (*lanes)(const Job& job, int64_t begin, int64_t end);
  void (*chunk_sums)(const Job& job, Row& row, int64_t chunk);
  void (*chunk_gradient)(const Job& job, const Row& row, int64_t chunk);
};

const Kernels& avx512_kernels();
const Kernels& avx2_kernels();
const Kernels& portable_kernels();

// The choice of instruction set; null if KDENGINE_CPU_ISA asks for what is not there.
const Kernels* kernels();

// float64 inputs, on every instruction set.
void wide_rows(const Job& job, int64_t begin, int64_t end);

// Shapes and options that the kernels are specialised for; everything else goes through the general row kernel.
bool suits_blocks(const Problem& problem);
bool suits_lanes(const Problem& problem);
bool lanes_in_memory(const Problem& problem);  // neighbouring rows are neighbours in memory
int64_t lane_groups(const Problem& problem);

}  // namespace kdengine::cpu
