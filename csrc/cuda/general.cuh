// Every variant of the loss, for any strides and dtypes: a team (a thread, a warp or a block) sweeps its row once for
// the maxima, once for the sums, once more where a divergence needs the normalisers before its moments, and once for
// the gradient. Element by element it is docs/kernels.md with the row's own maxima, so nothing has to be carried over.
#pragma once

#include "batch.cuh"
#include "shapes.h"
#include "sums.cuh"
#include "team.cuh"

namespace kdengine::cuda {

constexpr double kHuge = 1e30;     // stands for an infinite log ratio where its product with a zero has to be zero
constexpr double kTooMuch = 1.05;  // of probability in the values of a top-k teacher

// (expm1(u) - u) / u^2 for |u| < 1/2: its power series, to the last bit of Real.
template <class Real>
KD_DEVICE Real expm1_rest(Real u) {
  constexpr int terms = sizeof(Real) == 4 ? 8 : 15;
  Real h = 1;
#pragma unroll
  for (int k = terms + 2; k > 2; --k) h = Real(1) + u / Real(k) * h;
  return h / 2;
}

template <class Real>
struct Pair {
  Real s, t;
};

template <class Real>
struct PairTerms {
  Real a, b, u, d, q;
};

template <class Real>
KD_DEVICE Real clamped(Real x) {
  const Real huge = static_cast<Real>(kHuge);
  return x > huge ? huge : x < -huge ? -huge : x;
}

template <class Real, class Team>
struct General {
  const Problem& problem;
  const Team& team;
  const int64_t row;
  const Task task;
  const Divisors divisor;
  const Matrix& student;
  const Matrix& teacher;
  const int64_t s_start, t_start;
  const int64_t listed;  // entries of a top-k teacher, or 0
  int64_t shared;        // classes of the soft term; with a bin, it is the last
  bool binned, soft_fault;

  Real T;
  Real bin_s = 0, bin_t = 0, bin_mass = 0;  // the bin's logits, and the teacher's mass in it
  Best<Real> top_s, top_t;
  Sums<double> sums;
  Real c = 0, x = 0;                  // log(A / B) and D / B
  double moment_s = 0, moment_t = 0;  // sum p_s x^s and sum p_t x^t of the centred gradients
  Real centre_s = 0, centre_t = 0;
  double divergence = 0, entropy = 0;

  Real high = 0, log_E = 0;  // of the hard term
  double others = 0, own = 0, mass = 0;

  KD_DEVICE General(const Problem& problem, const Team& team, int64_t row, const Divisors& divisor)
      : problem(problem),
        team(team),
        row(row),
        task(task_of(problem, row)),
        divisor(divisor),
        student(problem.student),
        teacher(problem.teacher),
        s_start(row_offset(problem.student, row, problem.inner)),
        t_start(problem.soft ? row_offset(problem.teacher, row, problem.inner) : 0),
        listed(problem.indices ? problem.teacher.classes : 0),
        binned(problem.indices && problem.tail == Tail::bin),
        soft_fault(task.soft_fault),
        T(static_cast<Real>(task.temperature)) {
    shared = listed ? listed + binned : student.classes < teacher.classes ? student.classes : teacher.classes;
  }

  KD_DEVICE Real s_at(int64_t j) const { return load<Real>(student.data, student.dtype, s_start + j * student.step); }
  KD_DEVICE Real t_at(int64_t j) const { return load<Real>(teacher.data, teacher.dtype, t_start + j * teacher.step); }
  KD_DEVICE Real q_at(int64_t j) const {
    const Matrix& from = problem.probabilities;
    return load<Real>(from.data, from.dtype, row_offset(from, row, problem.inner) + j * from.step);
  }
  KD_DEVICE int64_t index_at(int64_t i) const { return problem.indices[t_start + i * teacher.step]; }

  // An absent entry of a top-k teacher is -inf; its index means nothing.
  KD_DEVICE bool present(int64_t i) const { return t_at(i) != -INFINITY; }

  KD_DEVICE Pair<Real> pair(int64_t j) const {
    if (!listed) return {s_at(j), t_at(j)};
    if (j == listed) return {bin_s, bin_t};
    const Real t = t_at(j);
    return {t == -INFINITY ? -Real(INFINITY) : s_at(index_at(j)), t};
  }

  KD_DEVICE static Real finite(Real maximum) { return maximum == -INFINITY ? Real(0) : maximum; }

  KD_DEVICE PairTerms<Real> terms(const Pair<Real>& at) const {
    const Real m_s = finite(top_s.value), m_t = finite(top_t.value);
    PairTerms<Real> y;
    y.a = exp((at.s - m_s) / T);
    y.b = exp((at.t - m_t) / T);
    y.u = ((at.s - at.t) - (m_s - m_t)) / T;
    if (y.a == 0 && y.b == 0) y.u = 0;
    const bool small = fabs(y.u) < Real(0.5);
    const Real rest = small ? y.b * y.u * y.u * expm1_rest(y.u) : Real(0);
    const Real moment = y.b > 0 ? y.b * y.u : Real(0);
    y.d = small ? moment + rest : y.a - y.b;
    y.q = small ? rest : y.d - moment;
    return y;
  }

  KD_DEVICE Real p_s(const PairTerms<Real>& y) const { return y.a / static_cast<Real>(sums.A); }
  KD_DEVICE Real p_t(const PairTerms<Real>& y) const { return y.b / static_cast<Real>(sums.B); }
  KD_DEVICE Real apart(const PairTerms<Real>& y) const { return (y.d - y.b * x) / static_cast<Real>(sums.A); }

  // log m - log max(p_s, p_t) for the mixture m, from v = log p_s - log p_t.
  KD_DEVICE Real mixture(Real v) const {
    const Real beta = static_cast<Real>(problem.beta);
    return log1p((v > 0 ? beta : 1 - beta) * expm1(-fabs(v)));
  }

  // What the student's and the teacher's centred gradient are made of, at one class.
  KD_DEVICE Pair<Real> inner(const PairTerms<Real>& y) const {
    if (problem.divergence != Divergence::jsd) {
      const Real u = clamped(y.u);
      return {u, u};
    }
    const Real v = clamped(y.u - c), to_larger = mixture(v);
    return {to_larger - (v < 0 ? v : Real(0)), to_larger + (v > 0 ? v : Real(0))};
  }

  KD_DEVICE void find_tops() {
    for (int64_t j = team.rank(); j < shared; j += team.size()) {
      const Pair<Real> at = pair(j);
      top_s.offer(at.s, j);
      top_t.offer(at.t, j);
    }
    top_s = team.best(top_s);
    top_t = team.best(top_t);
  }

  KD_DEVICE void find_sums() {
    for (int64_t j = team.rank(); j < shared; j += team.size()) {
      const PairTerms<Real> y = terms(pair(j));
      sums = sums + Sums<double>{double(y.a), double(y.b), double(y.d), double(y.q), 0};
    }
    sums.A = team.sum(sums.A);
    sums.B = team.sum(sums.B);
    sums.D = team.sum(sums.D);
    sums.Q = team.sum(sums.Q);
    c = static_cast<Real>(log_ratio(sums.A, sums.B, sums.D));
    x = static_cast<Real>(sums.D / sums.B);
  }

  KD_DEVICE double part_of_value(const PairTerms<Real>& y, const Pair<Real>& f) const {
    const Real beta = static_cast<Real>(problem.beta);
    if (problem.divergence == Divergence::jsd) return -double(beta * p_t(y) * f.t + (1 - beta) * p_s(y) * f.s);
    const Real v = y.u - c;
    return double((y.a > 0 ? p_s(y) * (v < -Real(kHuge) ? -Real(kHuge) : v) : Real(0)) - apart(y));
  }

  KD_DEVICE void find_moments() {
    if (top_s.at >= 0) centre_s = inner(terms(pair(top_s.at))).s;
    if (top_t.at >= 0) centre_t = inner(terms(pair(top_t.at))).t;
    double value = 0;
    for (int64_t j = team.rank(); j < shared; j += team.size()) {
      const PairTerms<Real> y = terms(pair(j));
      const Pair<Real> f = inner(y);
      if (problem.divergence != Divergence::forward_kl) value += part_of_value(y, f);
      moment_s += double(p_s(y) * (f.s - centre_s));
      moment_t += double(p_t(y) * (f.t - centre_t));
    }
    moment_s = team.sum(moment_s);
    moment_t = team.sum(moment_t);
    value = team.sum(value);
    if (problem.divergence != Divergence::forward_kl) divergence = value < 0 ? 0 : value;
  }

  KD_DEVICE void find_divergence() {
    if (listed && !soft_fault) read_listed();
    if (soft_fault) {
      divergence = NAN;
      return;
    }
    find_tops();
    find_sums();
    divergence = forward_kl(sums);
    if (problem.divergence != Divergence::forward_kl || problem.teacher_gradient.data) find_moments();
  }

  KD_DEVICE Real soft_to_student(int64_t j) const {
    const PairTerms<Real> y = terms(pair(j));
    if (problem.divergence == Divergence::forward_kl) return apart(y);
    const Real centred = p_s(y) * ((inner(y).s - centre_s) - static_cast<Real>(moment_s));
    return problem.divergence == Divergence::jsd ? (static_cast<Real>(problem.beta) - 1) * centred : centred;
  }

  KD_DEVICE Real soft_to_teacher(int64_t j) const {
    const PairTerms<Real> y = terms(pair(j));
    if (problem.divergence == Divergence::reverse_kl) return -apart(y);
    const Real centred = p_t(y) * ((inner(y).t - centre_t) - static_cast<Real>(moment_t));
    return problem.divergence == Divergence::jsd ? -static_cast<Real>(problem.beta) * centred : -centred;
  }

  // A top-k teacher.

  KD_DEVICE void read_listed() {
    bool outside = false;
    for (int64_t i = team.rank(); i < listed; i += team.size()) {
      outside |= present(i) && (index_at(i) < 0 || index_at(i) >= student.classes);
    }
    soft_fault = team.sum(outside ? 1.0 : 0.0) > 0;
    if (soft_fault || !binned) return;
    bin_s = static_cast<Real>(log_unlisted());
    const double rest = unlisted_mass();
    soft_fault = rest < 1 - kTooMuch;
    // Without an unlisted class in the student there is no bin: what is left of the teacher's mass is rounding.
    bin_mass = rest < 0 || bin_s == -INFINITY ? Real(0) : static_cast<Real>(rest);
    bin_t = log(bin_mass);
  }

  // 1 - sum exp(value); the largest enters by expm1: a small tail beside one large probability keeps its digits.
  KD_DEVICE double unlisted_mass() const {
    Best<Real> largest;
    for (int64_t i = team.rank(); i < listed; i += team.size()) largest.offer(t_at(i), i);
    largest = team.best(largest);
    double sum = 0;
    for (int64_t i = team.rank(); i < listed; i += team.size()) {
      if (i != largest.at) sum += exp(double(t_at(i)));
    }
    return -expm1(double(largest.value)) - team.sum(sum);
  }

  // log of the summed exponentials of the student's unlisted logits. Listed classes are bits in shared memory, a window
  // of classes at a time.
  KD_DEVICE double log_unlisted() const {
    Best<Real> high;
    double sum = 0;
    for (int64_t begin = 0; begin < student.classes; begin += kWindow) {
      const int64_t end = begin + kWindow < student.classes ? begin + kWindow : student.classes;
      team.clear_bits(end - begin);
      for (int64_t i = team.rank(); i < listed; i += team.size()) {
        const int64_t j = index_at(i) - begin;
        if (present(i) && j >= 0 && j < end - begin) team.set_bit(j);
      }
      team.sync();
      for (int64_t j = begin + team.rank(); j < end; j += team.size()) {
        if (!team.bit(j - begin)) add_exponential(s_at(j), high, sum);
      }
      team.sync();
    }
    const Best<Real> highest = team.best(high);
    const double all = team.sum(high.at < 0 ? sum : sum * exp(double(high.value) - double(highest.value)));
    return all == 0 ? -INFINITY : highest.at < 0 ? all : double(highest.value) + log(all);
  }

  KD_DEVICE static void add_exponential(Real value, Best<Real>& high, double& sum) {
    const Real before = high.value;
    high.offer(value, 0);
    if (value == -INFINITY) return;
    if (value != value) sum = value;
    if (high.value > before) sum *= before == -INFINITY ? 0.0 : exp(double(before) - double(high.value));
    sum += exp(double(value) - double(high.value));
  }

  // Hard labels.

  KD_DEVICE Real smoothed(Real q) const {
    const Real smoothing = static_cast<Real>(problem.smoothing);
    return q * (1 - smoothing) + smoothing / static_cast<Real>(student.classes);
  }

  KD_DEVICE bool labelled() const {
    if (task.label >= 0 || problem.labels) return true;
    double found = 0;
    for (int64_t j = team.rank(); j < student.classes; j += team.size()) found += q_at(j) != 0;
    return team.sum(found) > 0;
  }

  KD_DEVICE void find_entropy() {
    if (task.hard_fault) {
      entropy = NAN;
      return;
    }
    Best<Real> top;
    for (int64_t j = team.rank(); j < student.classes; j += team.size()) top.offer(s_at(j), j);
    high = finite(team.best(top).value);
    double centred = 0, cross = 0;
    for (int64_t j = team.rank(); j < student.classes; j += team.size()) {
      const Real z = s_at(j) - high;
      if (j != task.label) others += double(exp(z));
      centred += double(z);
      if (problem.labels) continue;
      const Real q = smoothed(q_at(j));
      mass += double(q);
      cross += q == 0 ? 0.0 : double(q * z);
    }
    others = team.sum(others);
    centred = team.sum(centred);
    mass = team.sum(mass);
    cross = team.sum(cross);
    conclude_entropy(centred, cross);
  }

  KD_DEVICE void conclude_entropy(double centred, double cross) {
    if (!problem.labels) {
      log_E = static_cast<Real>(log(others));
      entropy = mass * log(others) - cross;
      return;
    }
    const double z = double(s_at(task.label)) - double(high);
    own = exp(z);
    entropy = others <= own ? log1p(others / own) : log(others + own) - z;
    if (problem.smoothing == 0) return;
    const double uniform = log(others + own) - centred / double(student.classes);
    entropy = (1 - problem.smoothing) * entropy + problem.smoothing * uniform;
  }

  KD_DEVICE Real hard_to_student(int64_t j) const {
    const Real E = static_cast<Real>(others + own);
    const Real p = exp(s_at(j) - high) / E;
    if (!problem.labels) return p * static_cast<Real>(mass) - smoothed(q_at(j));
    const Real smoothing = static_cast<Real>(problem.smoothing);
    const Real at = j == task.label ? smoothing - static_cast<Real>(others) / E : p;
    return at - smoothing / static_cast<Real>(student.classes);
  }

  // Gradients.

  KD_DEVICE Real soft_scale() const { return static_cast<Real>(task.soft_weight * task.temperature / divisor.soft); }

  KD_DEVICE Real hard_part(int64_t j, bool hard) const {
    if (!hard) return 0;
    if (task.hard_fault) return NAN;
    return static_cast<Real>(task.hard_weight / divisor.hard) * hard_to_student(j);
  }

  KD_DEVICE void write_student(bool hard) const {
    const Matrix& to = problem.student_gradient;
    const int64_t start = row_offset(to, row, problem.inner);
    const Real scale = soft_scale();
    const Real bin = task.soft && binned && !soft_fault ? scale * soft_to_student(listed) : Real(0);
    for (int64_t j = team.rank(); j < student.classes; j += team.size()) {
      Real g = hard_part(j, hard);
      if (task.soft && soft_fault) {
        g = NAN;
      } else if (task.soft && !listed && j < shared) {
        g += scale * soft_to_student(j);
      } else if (task.soft && binned && bin_s != -INFINITY) {
        g += bin * exp(s_at(j) - bin_s);
      }
      store(to.data, to.dtype, start + j * to.step, g);
    }
    if (!task.soft || !listed || soft_fault) return;
    team.sync();  // listed classes were written as if they were not
    for (int64_t i = team.rank(); i < listed; i += team.size()) {
      if (!present(i)) continue;
      const int64_t j = index_at(i);
      Real g = hard_part(j, hard);
      for (int64_t other = 0; other < listed; ++other) {  // a class may be listed more than once
        if (index_at(other) == j && present(other)) g += scale * soft_to_student(other);
      }
      store(to.data, to.dtype, start + j * to.step, g);
    }
  }

  KD_DEVICE void write_teacher() const {
    const Matrix& to = problem.teacher_gradient;
    const int64_t start = row_offset(to, row, problem.inner);
    const Real scale = soft_scale();
    const bool takes = task.soft && !soft_fault && binned && bin_mass > 0;
    const Real bin = takes ? soft_to_teacher(listed) : Real(0);
    for (int64_t j = team.rank(); j < teacher.classes; j += team.size()) {
      Real g = 0;
      if (task.soft && soft_fault) {
        g = NAN;
      } else if (task.soft && j < shared) {
        g = soft_to_teacher(j);
        if (takes) g -= bin * exp(t_at(j)) / bin_mass;
      }
      store(to.data, to.dtype, start + j * to.step, task.soft ? g * scale : Real(0));
    }
  }

  KD_DEVICE void run(Totals& totals) {
    const bool hard = task.hard && labelled();
    if (task.soft) find_divergence();
    if (hard) find_entropy();
    if (team.rank() == 0) totals.add(problem, task, row, divergence, hard ? entropy : 0.0);
    if (problem.student_gradient.data) write_student(hard);
    if (problem.teacher_gradient.data) write_teacher();
  }
};

template <class Real, class Team>
KD_DEVICE void run_general(const Problem& problem, bool counted, Scratch* scratch) {
  Totals* shared = reinterpret_cast<Totals*>(shared_memory());
  const Divisors divisor = divisors(problem, scratch, counted, shared);
  const int64_t rows = problem.outer * problem.inner;
  const Team team(reinterpret_cast<unsigned char*>(shared + kMostWarps));
  Totals totals;
  for (int64_t row = team.first(); row < rows; row += team.step()) {
    General<Real, Team>(problem, team, row, divisor).run(totals);
  }
  finish(problem, scratch, totals, divisor, shared);
}

}  // namespace kdengine::cuda
