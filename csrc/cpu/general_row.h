// The driver of the general row kernel: arrays in, both terms, gradients out.
#pragma once

namespace kdengine::cpu {
namespace {

// Consecutive arrays of whole vectors.
template <class S>
struct Arrays {
  S* next;
  S* take(int64_t n) {
    S* array = next;
    next += padded(n);
    return array;
  }
};

template <class S>
struct GeneralRow {
  const Problem* problem;
  int64_t index;
  RowTerms terms;
  S* s;
  S* to_s;  // null: no gradient
  S* to_t;
  double soft;  // unweighted values
  double hard;
};

inline int64_t general_numbers(const Problem& p) {
  const int64_t t = p.teacher.data == nullptr ? 0 : p.teacher.classes;
  return 5 * padded(p.student.classes) + 14 * padded(t + 1);
}

template <class V>
uint32_t soft_term(GeneralRow<typename V::Scalar>& row, Arrays<typename V::Scalar> arrays) {
  using S = typename V::Scalar;
  const Problem& p = *row.problem;
  const int64_t classes = p.student.classes, listed = p.teacher.classes;
  const double temperature = row.terms.temperature, factor = row.terms.soft_scale * temperature;
  int64_t n = classes < listed ? classes : listed;
  const S* s = row.s;
  Listed<S> l = {};
  S* const t = arrays.take(listed + 1);
  const Side teacher = side_of(p.teacher, p.inner, row.index);
  stage<V>(teacher, p.indices == nullptr ? n : listed, t);
  if (p.indices != nullptr) {
    l = {listed, 0, p.indices + offset_of_row(p.teacher, p.inner, row.index), p.teacher.step,
         arrays.take(listed + 1), t, arrays.take(classes), 0};
    const uint32_t fault = list<V>(p, row.s, classes, l);
    if (fault != kNoFault) return fault;
    n = l.columns;
    s = l.student;
  }
  S* shared = arrays.take(n);  // the student's classes that both sides have, filled up anew
  memcpy(shared, s, n * sizeof(S));
  for (int64_t i = n; i < padded(n); ++i) shared[i] = (S)-INFINITY;
  Distributions<V> r = {n, arrays.take(n), arrays.take(n), arrays.take(n), arrays.take(n), 0, 0, 0, 0, nullptr, nullptr, 0, 0, 0};
  S* const to_s = row.to_s == nullptr ? nullptr : arrays.take(n);
  S* const to_t = row.to_t == nullptr ? nullptr : arrays.take(n);
  row.soft = divergence<V>(p, shared, t, temperature, factor, r, to_s, to_t);
  if (p.indices != nullptr) {
    if (to_s != nullptr) spread_student(l, to_s, classes, row.to_s);
    if (to_t != nullptr) spread_teacher(l, to_t, row.to_t);
  } else {
    if (to_s != nullptr) memcpy(row.to_s, to_s, n * sizeof(S));
    if (to_t != nullptr) memcpy(row.to_t, to_t, n * sizeof(S));
  }
  return kNoFault;
}

template <class V>
void hard_term(GeneralRow<typename V::Scalar>& row, Arrays<typename V::Scalar> arrays) {
  using S = typename V::Scalar;
  const Problem& p = *row.problem;
  const int64_t n = p.student.classes;
  S* const e = arrays.take(n);
  const double factor = row.terms.hard_scale;
  if (p.labels != nullptr) {
    row.hard = cross_entropy_ids<V>(row.s, n, row.terms.label, p.smoothing, factor, e, row.to_s);
    return;
  }
  S* const q = arrays.take(n);
  stage<V>(side_of(p.probabilities, p.inner, row.index), n, q);
  for (int64_t i = n; i < padded(n); ++i) q[i] = 0;
  row.hard = cross_entropy_probabilities<V>(row.s, q, n, p.smoothing, factor, e, row.to_s);
}

// Both gradients of a row that has none of its own: zero, or NaN at a fault.
inline void fill_gradients(const Problem& p, int64_t r, float value) {
  if (p.student_gradient.data != nullptr) {
    fill(side_of(p.student_gradient, p.inner, r), p.student_gradient.classes, value);
  }
  if (p.teacher_gradient.data != nullptr) {
    fill(side_of(p.teacher_gradient, p.inner, r), p.teacher_gradient.classes, value);
  }
}

inline void fail(const Job& job, int64_t r, uint32_t fault) {
  add_fault(job, fault);
  fill_gradients(*job.problem, r, NAN);
  job.values[2 * r] = job.values[2 * r + 1] = NAN;
}

template <class V>
void general_row(const Job& job, int64_t r, const RowTerms& terms) {
  using S = typename V::Scalar;
  const Problem& p = *job.problem;
  const int64_t classes = p.student.classes;
  Arrays<S> arrays = {(S*)scratch(general_numbers(p) * sizeof(S))};
  GeneralRow<S> row = {&p, r, terms, arrays.take(classes), nullptr, nullptr, 0, 0};
  stage<V>(side_of(p.student, p.inner, r), classes, row.s);
  if (p.student_gradient.data != nullptr) {
    row.to_s = arrays.take(classes);
    memset(row.to_s, 0, padded(classes) * sizeof(S));
  }
  if (p.teacher_gradient.data != nullptr) {
    row.to_t = arrays.take(p.teacher.classes);
    memset(row.to_t, 0, padded(p.teacher.classes) * sizeof(S));
  }
  const uint32_t fault = terms.soft ? soft_term<V>(row, arrays) : (uint32_t)kNoFault;
  if (fault != kNoFault) return fail(job, r, fault);
  if (terms.hard) hard_term<V>(row, arrays);
  job.values[2 * r] = terms.soft ? terms.soft_scale * terms.temperature * terms.temperature * row.soft : 0;
  job.values[2 * r + 1] = terms.hard ? terms.hard_scale * row.hard : 0;
  if (row.to_s != nullptr) {
    unstage<V>(row.to_s, classes, side_of(p.student_gradient, p.inner, r));
  }
  if (row.to_t != nullptr) {
    unstage<V>(row.to_t, p.teacher.classes, side_of(p.teacher_gradient, p.inner, r));
  }
}

}  // namespace
}  // namespace kdengine::cpu
