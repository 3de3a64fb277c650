// From the sums of a row's blocks to the row's values and to what its gradient is made of, in float64.
#include <math.h>

#include "kernels.h"

namespace kdengine::cpu {
namespace {

// How a block's references stand to the row's maxima.
struct Rescaling {
  double alpha;
  double beta;
  double delta;  // alpha - beta
  double w;
  double hard;  // alpha at temperature 1
};

struct Maxima {
  double student;
  double teacher;
};

struct Sums {
  double a, b, d, q, e;
};

bool has_no(float reference) { return reference == -INFINITY; }

Rescaling rescaling(const Block& block, const Maxima& row, const RowTerms& terms) {
  const double temperature = terms.temperature;
  // The references of a side without a finite logit say nothing: its sums are zero on any scale.
  if (has_no(block.student_max) && has_no(block.teacher_max)) return {0, 0, 0, 0, 0};
  const double beta = exp((block.teacher_max - row.teacher) / temperature);
  if (has_no(block.student_max)) return {beta, beta, 0, 0, 0};
  const double alpha = exp((block.student_max - row.student) / temperature);
  const double hard = terms.hard ? exp(block.student_max - row.student) : 0;
  if (has_no(block.teacher_max)) return {alpha, alpha, 0, 0, hard};
  const double shift = (double)block.student_max - (double)block.teacher_max;
  const double w = (shift - (row.student - row.teacher)) / temperature;
  return {alpha, beta, fabs(w) < 0.5 ? beta * expm1(w) : alpha - beta, w, hard};
}

// beta (expm1(w) - w); by its series where the subtraction would lose the digits.
double curve_of(const Rescaling& x) {
  if (fabs(x.w) < 1e-3) return x.beta * x.w * x.w * (0.5 + x.w / 6 + x.w * x.w / 24);
  return x.delta - x.beta * x.w;
}

void add(Sums& sums, const Block& block, const Rescaling& x) {
  sums.a += x.alpha * block.a;
  sums.e += x.hard * block.e;
  if (x.beta == 0) {
    sums.d += x.alpha * block.a;
    sums.q += x.alpha * block.a;
    return;
  }
  sums.b += x.beta * block.b;
  sums.d += x.alpha * block.d + x.delta * block.b;
  if (block.q == INFINITY) {
    sums.q = INFINITY;
  } else {
    sums.q += x.alpha * block.q + x.delta * (block.d - block.q) + curve_of(x) * block.b;
  }
}

bool same_references(const Block& x, const Block& y) {
  return x.student_max == y.student_max && x.teacher_max == y.teacher_max;
}

Maxima maxima_of(const Row& row) {
  Maxima m = {-INFINITY, -INFINITY};
  for (int64_t k = 0; k < row.block_count; ++k) {
    if (row.blocks[k].student_max > m.student) m.student = row.blocks[k].student_max;
    if (row.blocks[k].teacher_max > m.teacher) m.teacher = row.blocks[k].teacher_max;
  }
  return m;
}

double soft_value(const Sums& sums) {
  if (sums.a == 0 || sums.b == 0) return NAN;
  const double ratio = sums.d / sums.b;
  const double value = sums.q / sums.b - (ratio - log1p(ratio));
  return value < 0 ? 0 : value;
}

}  // namespace

void fold(const Job& job, Row& row) {
  const RowTerms& terms = row.terms;
  const Maxima maxima = maxima_of(row);
  Sums sums = {0, 0, 0, 0, 0};
  // Neighbouring blocks mostly share their references: two sweeps that compute each rescaling once.
  Rescaling x = {0, 0, 0, 0, 0};
  for (int64_t k = 0; k < row.block_count; ++k) {
    Block& block = row.blocks[k];
    if (k == 0 || !same_references(block, row.blocks[k - 1])) x = rescaling(block, maxima, terms);
    add(sums, block, x);
    block.scales[0] = x.alpha;
    block.scales[1] = x.delta;
    block.scales[2] = x.beta;
    block.scales[3] = x.hard;
  }
  job.values[2 * row.index] = terms.soft_scale * terms.temperature * terms.temperature * soft_value(sums);

  job.values[2 * row.index + 1] = 0;
  const double label_centred = (double)row.label_logit - maxima.student, at_label = exp(label_centred);
  const double all = sums.e + at_label;
  if (terms.hard) {
    const double value = sums.e > at_label ? log(all) - label_centred : log1p(sums.e / at_label);
    job.values[2 * row.index + 1] = terms.hard_scale * value;
    row.label_gradient = (float)(-terms.hard_scale * (sums.e / all));
  }
  const double soft = terms.soft_scale * terms.temperature / sums.a, ratio = sums.d / sums.b;
  for (int64_t k = 0; k < row.block_count; ++k) {
    Block& block = row.blocks[k];
    block.from_d = (float)(soft * block.scales[0]);
    block.from_b = (float)(soft * (block.scales[1] - block.scales[2] * ratio));
    block.from_e = (float)(terms.hard_scale * block.scales[3] / all);
  }
}

}  // namespace kdengine::cpu
