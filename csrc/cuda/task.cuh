// How one row takes part in a call: its weights, its temperature, its label, and the divisors of a mean.
#pragma once

#include "element.cuh"

namespace kdengine::cuda {

// The head of the scratch, zeroed before every call, with two partial sums per block behind it.
struct Scratch {
  unsigned ticket;                 // blocks that have finished
  unsigned unused;
  unsigned long long counted[2];   // rows of the soft and of the hard term, where a kernel ahead counted them
  double partial[1];               // of the soft and of the hard term, block by block
};

struct Divisors {
  double soft = 1, hard = 1;
};

struct Task {
  bool soft = false, hard = false;              // the row takes part in the term
  bool soft_fault = false, hard_fault = false;  // and gives NaN there
  double temperature = 1, soft_weight = 0, hard_weight = 0;
  int64_t label = -1;  // -1: none, or labels are probabilities
};

KD_DEVICE double value_of(const PerRow& x, int64_t row) {
  return x.values ? load<double>(x.values, x.dtype, row * x.stride) : x.number;
}

KD_DEVICE int64_t row_offset(const Matrix& x, int64_t row, int64_t inner) {
  if (inner == 1) return row * x.outer;
  return row / inner * x.outer + row % inner * x.inner;
}

KD_DEVICE bool counts_soft(const Problem& problem, int64_t row) { return !problem.mask || problem.mask[row]; }

KD_DEVICE bool counts_hard(const Problem& problem, int64_t row) {
  return counts_soft(problem, row) && problem.labels[row] != problem.ignore_index;
}

KD_DEVICE Task task_of(const Problem& problem, int64_t row) {
  Task task;
  if (!counts_soft(problem, row)) return task;
  if (problem.soft) {
    task.soft_weight = value_of(problem.soft_weight, row);
    task.soft = task.soft_weight != 0;
  }
  if (task.soft) {
    task.temperature = value_of(problem.temperature, row);
    task.soft_fault = !(task.temperature > 0);
  }
  if (problem.hard) {
    task.hard_weight = value_of(problem.hard_weight, row);
    task.hard = task.hard_weight != 0 && (!problem.labels || counts_hard(problem, row));
  }
  if (task.hard && problem.labels) {
    task.label = problem.labels[row];
    task.hard_fault = task.label < 0 || task.label >= problem.student.classes;
  }
  return task;
}

template <class Out>
KD_DEVICE void write_terms(const Problem& problem, int64_t at, double soft, double hard) {
  const Out soft_term = static_cast<Out>(soft), hard_term = static_cast<Out>(hard);
  if (problem.soft_term) static_cast<Out*>(problem.soft_term)[at] = soft_term;
  if (problem.hard_term) static_cast<Out*>(problem.hard_term)[at] = hard_term;
  if (problem.loss) static_cast<Out*>(problem.loss)[at] = soft_term + hard_term;
}

KD_DEVICE void write_terms(const Problem& problem, int64_t at, double soft, double hard) {
  if (problem.wide) {
    write_terms<double>(problem, at, soft, hard);
  } else {
    write_terms<float>(problem, at, soft, hard);
  }
}

// The weighted sums of the rows that one thread has finished.
struct Totals {
  double soft = 0, hard = 0;

  // Values of a row, unweighted; a term that the row has no part in is given as 0.
  KD_DEVICE void add(const Problem& problem, const Task& task, int64_t row, double divergence, double cross_entropy) {
    const double one = task.soft ? task.soft_weight * task.temperature * task.temperature * divergence : 0.0;
    const double two = task.hard ? task.hard_weight * cross_entropy : 0.0;
    if (problem.reduction == Reduction::none) {
      write_terms(problem, row, one, two);
    } else {
      soft += one;
      hard += two;
    }
  }
};

}  // namespace kdengine::cuda
