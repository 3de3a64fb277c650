// One row, anything that the signature offers, in whichever type: both sides are brought into scratch once and every
// sum sweeps over them there. Arrays are filled up with -inf (or 0) to a whole number of vectors.
#pragma once

namespace kdengine::cpu {
namespace {

constexpr double kHuge = 1e30;  // stands for an infinite log ratio where its product with a zero has to be zero

// Numbers that are summed in the vector's type before float64 takes over: few, as equal ones round all one way.
constexpr int64_t kPartial = 128;

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Sum of term(i) over whole vectors.
template <class V, class F>
inline double sum_over(int64_t n, F term) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kPartial) {
    const int64_t end = start + kPartial < n ? start + kPartial : n;
    V sum = V::all(0);
    for (int64_t i = start; i < end; i += V::width) sum = sum + term(i);
    total += lane_sum(sum);
  }
  return total;
}

template <class V>
inline typename V::Scalar largest_of(const typename V::Scalar* x, int64_t n) {
  V top = V::all((typename V::Scalar)-INFINITY);
  for (int64_t i = 0; i < n; i += V::width) top = max(V::load(x + i), top);
  return lane_max(top);
}

// Where the largest value stands; 0 if there is none.
template <class S>
inline int64_t place_of(const S* x, int64_t n, S largest) {
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == largest) return i;
  }
  return 0;
}

template <class S>
inline S finite(S reference) {
  return reference == (S)-INFINITY ? 0 : reference;
}

// Two softened distributions of one row, before their normalisers.
template <class V>
struct Distributions {
  using S = typename V::Scalar;
  int64_t n;
  S *a, *b, *d, *spare;
  double sum_a, sum_b, sum_d, sum_q;
  const S *x, *y;  // the logits
  double temperature;
  int64_t top_a, top_b;  // where a and b are largest
};

template <class V>
inline V clamped(V x) {
  using S = typename V::Scalar;
  return max(V::all((S)-kHuge), min(V::all((S)kHuge), x));
}

// ((x - y) - origin) / T of each class, 0 where both probabilities are. The origin is chosen for where digits matter:
// counted from elsewhere and subtracted later, a large log ratio would leave only its rounding.
template <class V>
struct LogRatio {
  const Distributions<V>& r;
  V high, low, inverse;  // the origin in two parts

  LogRatio(const Distributions<V>& distributions, double origin)
      : r(distributions),
        high(V::all((typename V::Scalar)origin)),
        low(V::all((typename V::Scalar)(origin - (double)(typename V::Scalar)origin))),
        inverse(softening<V>(distributions.temperature).inverse) {}

  V operator()(int64_t i) const {
    const V x = V::load(r.x + i), y = V::load(r.y + i), difference = x - y;
    const V ratio = ((difference - high) + (rounding_of_difference(x, y, difference) - low)) * inverse;
    return clamped(drop(equal(V::load(r.a + i) + V::load(r.b + i), V::all(0)), ratio));
  }
};

// The compared sides are `x` (in the student's place) and `y`.
template <class V>
void compare_row(const typename V::Scalar* x, const typename V::Scalar* y, double temperature, Distributions<V>& r) {
  using S = typename V::Scalar;
  const S x_max = largest_of<V>(x, r.n), y_max = largest_of<V>(y, r.n);
  const Softening<V> soft = softening<V>(temperature);
  const Frame<V> f = frame(V::all(finite(x_max)), V::all(finite(y_max)), soft);
  const Constants<V> c = constants<V>();
  const V zero = V::all(0);
  r.x = x;
  r.y = y;
  r.temperature = temperature;
  r.sum_a = r.sum_b = r.sum_d = r.sum_q = 0;
  for (int64_t start = 0; start < r.n; start += kPartial) {
    const int64_t end = start + kPartial < r.n ? start + kPartial : r.n;
    V sums[4] = {zero, zero, zero, zero};
    for (int64_t i = start; i < end; i += V::width) {
      const Pair<V> p = compare(V::load(x + i), V::load(y + i), f, soft, c);
      store(r.a + i, p.a);
      store(r.b + i, p.b);
      store(r.d + i, p.d);
      sums[0] = sums[0] + p.a;
      sums[1] = sums[1] + p.b;
      sums[2] = sums[2] + p.d;
      sums[3] = sums[3] + p.q;
    }
    r.sum_a += lane_sum(sums[0]);
    r.sum_b += lane_sum(sums[1]);
    r.sum_d += lane_sum(sums[2]);
    r.sum_q += lane_sum(sums[3]);
  }
  r.top_a = place_of(x, r.n, x_max);
  r.top_b = place_of(y, r.n, y_max);
}

// out = factor p (v - sum p v) with p = weights / sum, which counts v from its value at p's largest class.
template <class V, class F>
void centred_gradient(const typename V::Scalar* weights, double sum, int64_t top, int64_t n, double factor, F values,
                      typename V::Scalar* out) {
  using S = typename V::Scalar;
  S reference[V::width];
  store(reference, values(top / V::width * V::width));
  const V origin = V::all(reference[top % V::width]);
  const double mean = sum_over<V>(n, [&](int64_t i) { return V::load(weights + i) * (values(i) - origin); }) / sum;
  const V share = V::all((S)(factor / sum)), middle = V::all((S)mean);
  for (int64_t i = 0; i < n; i += V::width) {
    store(out + i, V::load(weights + i) * share * ((values(i) - origin) - middle));
  }
}

// KL(p_y || p_x): its value, and factor times its gradients by x / T and y / T where the outputs are not null.
template <class V>
double kl(const Distributions<V>& r, double factor, typename V::Scalar* to_x, typename V::Scalar* to_y) {
  using S = typename V::Scalar;
  const double ratio = r.sum_d / r.sum_b;
  if (to_x != nullptr) {
    const V from_d = V::all((S)(factor / r.sum_a)), from_b = V::all((S)(-factor * ratio / r.sum_a));
    for (int64_t i = 0; i < r.n; i += V::width) {
      store(to_x + i, fma(V::load(r.d + i), from_d, V::load(r.b + i) * from_b));
    }
  }
  if (to_y != nullptr) {
    const double at_top = (double)finite(r.x[r.top_b]) - (double)finite(r.y[r.top_b]);
    centred_gradient<V>(r.b, r.sum_b, r.top_b, r.n, -factor, LogRatio<V>(r, at_top), to_y);
  }
  return r.sum_q / r.sum_b - (ratio - log1p(ratio));
}

// log(m / p) up to a constant, of the side whose log ratio to the other one is v and whose share of m is 1 / (1 + k):
// log(1 + k exp(-v)), which keeps its digits where p is so much the larger that log(m / p) itself is flat.
template <class V>
inline V above_flat(V v, double k, const Constants<V>& c) {
  using S = typename V::Scalar;
  const V zero = V::all(0), vanishing = exponential(zero - abs(v), softening<V>(1), c);
  const auto larger = less(zero, v);
  const V log = log_one_plus(vanishing * select(larger, V::all((S)k), V::all((S)(1 / k))));
  return select(larger, log, log + (V::all((S)::log(k)) - v));
}

// Whether p at `top` is more than e times the other side's.
template <class V>
inline bool is_flat_at(int64_t top, const LogRatio<V>& log_ratio, double sign) {
  typename V::Scalar lanes[V::width];
  store(lanes, log_ratio(top / V::width * V::width));
  return sign * lanes[top % V::width] > 1;
}

// beta KL(p_y || m) + (1 - beta) KL(p_x || m). Overwrites d with log(m / p_x).
template <class V>
double jsd(Distributions<V>& r, double beta, double factor, typename V::Scalar* to_x, typename V::Scalar* to_y) {
  using S = typename V::Scalar;
  const V zero = V::all(0), one = V::all(1);
  const double shift = (double)finite(r.x[r.top_a]) - (double)finite(r.y[r.top_b]);
  const LogRatio<V> log_ratio(r, shift + r.temperature * log1p(r.sum_d / r.sum_b));
  const Constants<V> k = constants<V>();
  const V to_teacher = V::all((S)beta), to_student = V::all((S)(1 - beta));
  for (int64_t i = 0; i < r.n; i += V::width) {
    const V v = log_ratio(i), size = abs(v);
    // expm1(-size), by its series where it is small.
    const V minus = zero - size;
    const V near = fma(minus * minus, curvature(minus, k), minus);
    const V gap = select(less(size, k.small), near, exponential(minus, softening<V>(1), k) - one);
    const V to_larger = log_one_plus(select(less(zero, v), to_teacher, to_student) * gap);
    store(r.d + i, to_larger - min(v, zero));
    store(r.spare + i, to_larger + max(v, zero));
  }
  const auto from_x = [&](int64_t i) { return V::load(r.d + i); };
  const auto from_y = [&](int64_t i) { return V::load(r.spare + i); };
  const V p_x = V::all((S)((1 - beta) / r.sum_a)), p_y = V::all((S)(beta / r.sum_b));
  const double value = -sum_over<V>(r.n, [&](int64_t i) {
    return fma(V::load(r.a + i) * p_x, from_x(i), V::load(r.b + i) * p_y * from_y(i));
  });
  const double odds = beta / (1 - beta);
  if (to_x != nullptr && is_flat_at(r.top_a, log_ratio, 1)) {
    for (int64_t i = 0; i < r.n; i += V::width) store(r.d + i, above_flat(log_ratio(i), odds, k));
  }
  if (to_y != nullptr && is_flat_at(r.top_b, log_ratio, -1)) {
    for (int64_t i = 0; i < r.n; i += V::width) store(r.spare + i, above_flat(zero - log_ratio(i), 1 / odds, k));
  }
  if (to_x != nullptr) centred_gradient<V>(r.a, r.sum_a, r.top_a, r.n, (beta - 1) * factor, from_x, to_x);
  if (to_y != nullptr) centred_gradient<V>(r.b, r.sum_b, r.top_b, r.n, -beta * factor, from_y, to_y);
  return value;
}

// The divergence of one row and factor times its gradients by s / T and t / T.
template <class V>
double divergence(const Problem& p, const typename V::Scalar* s, const typename V::Scalar* t, double temperature,
                  double factor, Distributions<V>& r, typename V::Scalar* to_s, typename V::Scalar* to_t) {
  // Reverse KL is forward KL with the sides exchanged.
  const bool exchanged = p.divergence == Divergence::reverse_kl;
  compare_row<V>(exchanged ? t : s, exchanged ? s : t, temperature, r);
  if (r.sum_a == 0 || r.sum_b == 0) r.sum_a = r.sum_b = NAN;
  double value;
  if (p.divergence == Divergence::jsd) {
    value = jsd<V>(r, p.beta, factor, to_s, to_t);
  } else {
    value = exchanged ? kl<V>(r, factor, to_t, to_s) : kl<V>(r, factor, to_s, to_t);
  }
  return value < 0 ? 0 : value;
}

// Cross-entropy over all n classes; adds factor times its gradient to `to_s` unless that is null.
template <class V>
double cross_entropy_ids(const typename V::Scalar* s, int64_t n, int64_t label, double smoothing, double factor,
                         typename V::Scalar* e, typename V::Scalar* to_s) {
  using S = typename V::Scalar;
  const S largest = finite(largest_of<V>(s, n));
  const V top = V::all(largest);
  const Softening<V> one = softening<V>(1);
  const Constants<V> k = constants<V>();
  for (int64_t i = 0; i < n; i += V::width) store(e + i, exponential(V::load(s + i) - top, one, k));
  const double at_label = exp((double)(s[label] - largest)), centred = (double)s[label] - (double)largest;
  e[label] = 0;
  const double others = sum_over<V>(n, [&](int64_t i) { return V::load(e + i); }), all = others + at_label;
  double value = others > at_label ? log(all) - centred : log1p(others / at_label);
  if (smoothing != 0) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += (double)s[i] - (double)largest;
    value = (1 - smoothing) * value + smoothing * (log(all) - sum / n);
  }
  if (to_s == nullptr) return value;
  const V share = V::all((S)(factor / all)), even = V::all((S)(-factor * smoothing / n));
  const S before = to_s[label];
  for (int64_t i = 0; i < n; i += V::width) {
    store(to_s + i, fma(V::load(e + i), share, V::load(to_s + i) + even));
  }
  to_s[label] = (S)(before + factor * (smoothing - others / all - smoothing / n));
  return value;
}

template <class V>
double cross_entropy_probabilities(const typename V::Scalar* s, const typename V::Scalar* q, int64_t n,
                                   double smoothing, double factor, typename V::Scalar* e, typename V::Scalar* to_s) {
  using S = typename V::Scalar;
  const S largest = finite(largest_of<V>(s, n));
  const V top = V::all(largest);
  const Softening<V> one = softening<V>(1);
  const Constants<V> k = constants<V>();
  for (int64_t i = 0; i < n; i += V::width) store(e + i, exponential(V::load(s + i) - top, one, k));
  const double all = sum_over<V>(n, [&](int64_t i) { return V::load(e + i); });
  const double even = smoothing / n, log_all = log(all);
  double value = 0, mass = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double target = (double)q[i] * (1 - smoothing) + even;
    mass += target;
    if (target != 0) value -= target * (((double)s[i] - (double)largest) - log_all);
  }
  if (to_s == nullptr) return value;
  const V share = V::all((S)(factor * mass / all)), targets = V::all((S)(-factor * (1 - smoothing)));
  const V base = V::all((S)(-factor * even));
  for (int64_t i = 0; i < n; i += V::width) {
    const V target = fma(V::load(q + i), targets, base);
    store(to_s + i, fma(V::load(e + i), share, target) + V::load(to_s + i));
  }
  return value;
}

}  // namespace
}  // namespace kdengine::cpu
