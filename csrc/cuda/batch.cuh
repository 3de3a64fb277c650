// What concerns the whole batch: rows are counted at the start of a launch, their values are added up at its end.
#pragma once

#include "task.cuh"

namespace kdengine::cuda {

constexpr int kMostWarps = 32;

// Sums of a pair over the block, the same in every thread, in a fixed order. `shared` holds kMostWarps pairs; every
// thread of the block takes part.
KD_DEVICE Totals block_sum(Totals own, Totals* shared) {
  own.soft = lanes_sum(own.soft);
  own.hard = lanes_sum(own.hard);
  __syncthreads();  // the last use of `shared` is over
  if (lane_index() == 0) shared[warp_index()] = own;
  __syncthreads();
  Totals sum;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
    sum.soft += shared[warp].soft;
    sum.hard += shared[warp].hard;
  }
  return sum;
}

// Rows of both terms among first, first + step, ...
KD_DEVICE Totals count_rows(const Problem& problem, int64_t first, int64_t step) {
  const int64_t rows = problem.outer * problem.inner;
  Totals count;
  for (int64_t row = first; row < rows; row += step) {
    if (counts_soft(problem, row)) count.soft += 1;
    if (problem.labels && counts_hard(problem, row)) count.hard += 1;
  }
  return count;
}

KD_DEVICE Divisors at_least_one(double soft, double hard) { return {soft > 1 ? soft : 1.0, hard > 1 ? hard : 1.0}; }

// What the terms of a mean are divided by. Rows may drop out by mask or label: then every block counts for itself,
// unless a kernel ahead has counted.
KD_DEVICE Divisors divisors(const Problem& problem, const Scratch* scratch, bool counted, Totals* shared) {
  if (problem.reduction != Reduction::mean) return Divisors{};
  if (counted) return at_least_one(double(scratch->counted[0]), double(scratch->counted[1]));
  const double rows = static_cast<double>(problem.outer * problem.inner);
  if (!problem.mask && !problem.labels) return at_least_one(rows, 1);
  const Totals count = block_sum(count_rows(problem, threadIdx.x, blockDim.x), shared);
  return at_least_one(count.soft, count.hard);
}

// Adds up the totals of all threads of the grid and writes the loss: the last block to arrive adds the blocks' sums in
// their order, so the bits do not depend on who was last.
KD_DEVICE void finish(const Problem& problem, Scratch* scratch, Totals own, const Divisors& divisor, Totals* shared) {
  if (problem.reduction == Reduction::none) return;
  const Totals block = block_sum(own, shared);
  __syncthreads();
  unsigned* last = reinterpret_cast<unsigned*>(shared);
  if (threadIdx.x == 0) {
    scratch->partial[2 * blockIdx.x] = block.soft;
    scratch->partial[2 * blockIdx.x + 1] = block.hard;
    __threadfence();
    *last = atomicAdd(&scratch->ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!*last) return;
  Totals mine;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
    mine.soft += __ldcg(&scratch->partial[2 * i]);
    mine.hard += __ldcg(&scratch->partial[2 * i + 1]);
  }
  const Totals all = block_sum(mine, shared);
  if (threadIdx.x == 0) write_terms(problem, 0, all.soft / divisor.soft, all.hard / divisor.hard);
}

}  // namespace kdengine::cuda
