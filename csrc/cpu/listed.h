// A teacher known by its k largest values: both sides reduced to k classes, or to k and a bin of all others.
#pragma once

namespace kdengine::cpu {
namespace {

constexpr double kTooMuch = 1.05;  // probabilities that sum to more are none, in bfloat16 either

template <class S>
struct Listed {
  int64_t k;
  int64_t columns;       // k, and one for the bin
  const int64_t* index;  // of column j at index[j * step]
  int64_t step;
  S* student;    // of the listed classes, then of the bin
  S* teacher;
  S* rest;       // p(class | not listed) of the student
  double mass;   // the teacher's in the bin
};

template <class S>
inline bool present(S value) {
  return value != (S)-INFINITY;
}

// What the listed log-probabilities leave to all other classes. The largest is subtracted by expm1: a small tail
// beside one large probability keeps its digits.
template <class S>
double tail_mass(const S* values, int64_t k) {
  int64_t top = 0;
  for (int64_t j = 1; j < k; ++j) top = values[j] > values[top] ? j : top;
  double mass = -expm1((double)values[top]);
  for (int64_t j = 0; j < k; ++j) mass -= j == top ? 0 : exp((double)values[j]);
  return mass;
}

// Fills `rest`, and returns the log of the summed exponentials of the unlisted logits.
template <class V>
double sum_up_rest(const typename V::Scalar* s, int64_t n, Listed<typename V::Scalar>& l) {
  using S = typename V::Scalar;
  memcpy(l.rest, s, padded(n) * sizeof(S));
  for (int64_t j = 0; j < l.k; ++j) {
    if (present(l.teacher[j])) l.rest[l.index[j * l.step]] = (S)-INFINITY;
  }
  const S largest = finite(largest_of<V>(l.rest, n));
  const Softening<V> one = softening<V>(1);
  const Constants<V> k = constants<V>();
  for (int64_t i = 0; i < n; i += V::width) {
    store(l.rest + i, exponential(V::load(l.rest + i) - V::all(largest), one, k));
  }
  const double sum = sum_over<V>(n, [&](int64_t i) { return V::load(l.rest + i); });
  const V share = V::all((S)(sum == 0 ? 0 : 1 / sum));
  for (int64_t i = 0; i < n; i += V::width) store(l.rest + i, V::load(l.rest + i) * share);
  return sum == 0 ? -INFINITY : largest + log(sum);
}

// Expects the k values in `teacher`; returns the fault that makes the row NaN.
template <class V>
uint32_t list(const Problem& p, const typename V::Scalar* s, int64_t n, Listed<typename V::Scalar>& l) {
  using S = typename V::Scalar;
  for (int64_t j = 0; j < l.k; ++j) {
    const int64_t index = l.index[j * l.step];
    const bool there = present(l.teacher[j]);
    if (there && (index < 0 || index >= n)) return kIndexOutside;
    l.student[j] = there ? s[index] : (S)-INFINITY;
  }
  l.columns = l.k;
  if (p.tail == Tail::bin) {
    const double unlisted = sum_up_rest<V>(s, n, l);
    l.mass = tail_mass(l.teacher, l.k);
    if (l.mass < 1 - kTooMuch) return kTooMuchMass;
    // Without an unlisted class in the student there is no bin: what is left of the teacher's mass is rounding.
    if (l.mass < 0 || unlisted == -INFINITY) l.mass = 0;
    l.student[l.k] = (S)unlisted;
    l.teacher[l.k] = (S)log(l.mass);
    l.columns = l.k + 1;
  }
  for (int64_t j = l.columns; j < padded(l.columns); ++j) l.student[j] = l.teacher[j] = (S)-INFINITY;
  return kNoFault;
}

// Carries a gradient over the columns back to all of the student's classes.
template <class S>
void spread_student(const Listed<S>& l, const S* columns, int64_t n, S* gradient) {
  if (l.columns > l.k) {
    for (int64_t i = 0; i < n; ++i) gradient[i] = columns[l.k] * l.rest[i];
  }
  for (int64_t j = 0; j < l.k; ++j) {
    if (present(l.teacher[j])) gradient[l.index[j * l.step]] += columns[j];
  }
}

// Carries it back to the teacher's k values: what a value gains, the bin's logarithm loses.
template <class S>
void spread_teacher(const Listed<S>& l, const S* columns, S* gradient) {
  const bool binned = l.columns > l.k && l.mass > 0;
  for (int64_t j = 0; j < l.k; ++j) {
    const double share = binned ? exp((double)l.teacher[j]) / l.mass : 0;
    gradient[j] = binned ? (S)(columns[j] - columns[l.k] * share) : columns[j];
  }
}

}  // namespace
}  // namespace kdengine::cpu
