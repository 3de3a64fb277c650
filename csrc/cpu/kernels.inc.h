// The kernels of one instruction set: included once by each of them, behind its vectors. Nothing here or in what it
// includes may leave this translation unit, and no inline function of the standard library may be called: the linker
// keeps one copy of those, which might be of an instruction set that the processor does not have.
#pragma once

// clang-format off
#include "two.h"
#include "functions.h"
#include "stage.h"
#include "general.h"
#include "listed.h"
#include "general_row.h"
#include "row.h"
#include "lanes.h"
// clang-format on

namespace kdengine::cpu {
namespace {

inline Row row_in_scratch(const Problem& p, int64_t r, const RowTerms& terms) {
  const int64_t classes = p.student.classes, count = (classes + kBlock - 1) / kBlock, size = padded(classes);
  char* memory = (char*)scratch(3 * size * sizeof(float) + count * sizeof(Block));
  float* const d = (float*)memory;
  Block* const blocks = (Block*)(d + 3 * size);
  const bool own = terms.hard && power_of(terms.temperature) == 0;
  return {terms, r, classes, d, d + size, own ? d + 2 * size : nullptr, blocks, count, 0, 0};
}

inline void block_row(const Job& job, int64_t r, const RowTerms& terms, int64_t next) {
  Row row = row_in_scratch(*job.problem, r, terms);
  const int64_t chunks = (row.block_count + kChunk - 1) / kChunk;
  for (int64_t k = 0; k < chunks; ++k) sum_chunk(job, row, k, next);
  fold(job, row);
  if (job.problem->student_gradient.data == nullptr) return;
  for (int64_t k = 0; k < chunks; ++k) write_chunk(job, row, k);
}

void process_rows(const Job& job, int64_t begin, int64_t end) {
  const bool blocks = suits_blocks(*job.problem);
  for (int64_t r = begin; r < end; ++r) {
    RowTerms terms;
    const uint32_t fault = row_terms(job, r, terms);
    if (fault != kNoFault) {
      fail(job, r, fault);
    } else if (!terms.soft && !terms.hard) {
      job.values[2 * r] = job.values[2 * r + 1] = 0;
      fill_gradients(*job.problem, r, 0);
    } else if (blocks && terms.soft) {
      block_row(job, r, terms, r + 1 < end ? r + 1 : r);
    } else {
      general_row<Vec>(job, r, terms);
    }
  }
  if (job.stream) finish_streams();
}

void process_chunk_sums(const Job& job, Row& row, int64_t chunk) { sum_chunk(job, row, chunk, row.index); }

void process_chunk_gradient(const Job& job, const Row& row, int64_t chunk) {
  write_chunk(job, row, chunk);
  if (job.stream) finish_streams();
}

}  // namespace
}  // namespace kdengine::cpu
