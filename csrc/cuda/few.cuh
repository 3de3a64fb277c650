// The streamed path's rows of very few classes: `width` lanes share a row, with kFewElements classes each.
#pragma once

#include "batch.cuh"
#include "terms.cuh"

namespace kdengine::cuda {

constexpr int kFewElements = 4;

template <class Element, int width, bool hard>
struct Few {
  const Problem& problem;
  int64_t row;  // of this lane
  int lane;     // among those of its row
  Task task;
  bool reads = false;
  float s[kFewElements], t[kFewElements];

  KD_DEVICE Few(const Problem& problem, int64_t row) : problem(problem), row(row), lane(lane_index() % width) {}

  KD_DEVICE int class_of(int k) const { return k * width + lane; }

  KD_DEVICE static void fetch(const Matrix& from, int64_t start, bool reads, int lane, float (&x)[kFewElements]) {
    const Element* data = static_cast<const Element*>(from.data) + start;
#pragma unroll
    for (int k = 0; k < kFewElements; ++k) {
      const int j = k * width + lane;
      x[k] = reads && j < from.classes ? widen(data[j * from.step]) : -INFINITY;
    }
  }

  KD_DEVICE void open(bool inside) {
    if (inside) task = task_of(problem, row);
    reads = task.soft || task.hard;
    const Matrix& teacher = task.soft ? problem.teacher : problem.student;
    fetch(problem.student, row_offset(problem.student, row, problem.inner), reads, lane, s);
    fetch(teacher, row_offset(teacher, row, problem.inner), reads, lane, t);
  }

  KD_DEVICE Reference highest() const {
    float high_s = -INFINITY, high_t = -INFINITY;
#pragma unroll
    for (int k = 0; k < kFewElements; ++k) {
      high_s = larger(high_s, s[k]);
      high_t = larger(high_t, t[k]);
    }
    return {lanes_max(high_s, width), lanes_max(high_t, width)};
  }

  // Every lane of the warp takes part; `inside` is false behind the last row.
  KD_DEVICE void run(bool inside, const Divisors& divisor, Totals& totals) {
    open(inside);
    const float scale = task.soft ? static_cast<float>(1.4426950408889634 / task.temperature) : 1.0f;
    const Reference from = highest();
    const Exponents exponents(scale, from);
    Terms x[kFewElements];
    Sums<float> sums;
#pragma unroll
    for (int k = 0; k < kFewElements; ++k) {
      x[k] = accumulate<hard, sizeof(Element) == 4>(s[k], t[k], exponents, sums);
      if (hard && task.hard && class_of(k) == task.label) x[k].e = 0;
      sums.R += x[k].e;
    }
    const Sums<double> row_sums{lanes_sum(sums.A, width), lanes_sum(sums.B, width), lanes_sum(sums.D, width),
                                lanes_sum(sums.Q, width), lanes_sum(sums.R, width)};
    if (!inside) return;
    const Outcome outcome = conclude<Element>(problem, row, from, scale, row_sums, divisor,
                                             lane == 0 ? &totals : nullptr);
    if (problem.student_gradient.data) write(outcome, x);
  }

  KD_DEVICE void write(const Outcome& outcome, const Terms (&x)[kFewElements]) const {
    const Matrix& to = problem.student_gradient;
    Element* data = static_cast<Element*>(to.data) + row_offset(to, row, problem.inner);
    const Factors by = outcome.factors(outcome.reference);
#pragma unroll
    for (int k = 0; k < kFewElements; ++k) {
      const int j = class_of(k);
      float g = gradient<hard>(x[k], by);
      if (hard && j == task.label) g += outcome.at_label;
      if (j < to.classes) data[j * to.step] = narrow<Element>(g);
    }
  }
};

template <class Element, int width, bool hard>
KD_DEVICE void run_few(const Problem& problem, bool counted, Scratch* scratch) {
  Totals* shared = reinterpret_cast<Totals*>(shared_memory());
  const Divisors divisor = divisors(problem, scratch, counted, shared);
  const int64_t rows = problem.outer * problem.inner;
  const int64_t step = int64_t(gridDim.x) * blockDim.x / width;
  const int64_t own = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / width;
  const int64_t warp_first = own - lane_index() / width;  // the same in the warp's lanes, and so is the loop's end
  Totals totals;
  for (int64_t row = own, first = warp_first; first < rows; row += step, first += step) {
    Few<Element, width, hard>(problem, row).run(row < rows, divisor, totals);
  }
  finish(problem, scratch, totals, divisor, shared);
}

}  // namespace kdengine::cuda
