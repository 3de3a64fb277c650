// Sixteen rows at once, a row to each lane: for few classes, and for rows that are neighbours in memory (dim=1 of
// (N, C, H, W)). Forward KL with the student's gradient, and cross-entropy with class ids.
#pragma once

namespace kdengine::cpu {
namespace {

// Rows of a group: `count` rows from `first` on, element (class c, row j) at c * step + j * row of each side.
struct Group {
  int64_t first;
  int count;
};

inline Group group_at(const Job& job, int64_t g) {
  const Problem& p = *job.problem;
  if (!lanes_in_memory(p)) {
    const int64_t first = g * kLanes, rest = job.rows - first;
    return {first, rest < kLanes ? (int)rest : kLanes};
  }
  const int64_t per_outer = (p.inner + kLanes - 1) / kLanes, in_outer = g % per_outer * kLanes;
  const int64_t rest = p.inner - in_outer;
  return {g / per_outer * p.inner + in_outer, rest < kLanes ? (int)rest : kLanes};
}

// Neighbouring rows into lanes as they lie.
template <class E>
inline void pack_neighbours(const E* p, int64_t step, int64_t classes, int count, float* lanes) {
  for (int64_t c = 0; c < classes; ++c, p += step, lanes += kLanes) {
    for (int j = 0; j < kLanes; j += Vec::width) {
      const int n = count - j;
      const Vec x = n >= Vec::width ? Vec::load(p + j) : n > 0 ? load_first<Vec>(p + j, n, 0) : Vec::all(0);
      store(lanes + j, x);
    }
  }
}

// Where a transposed square of classes begins: the last one reaches back over its neighbour rather than past the row.
inline int64_t square_at(int64_t c, int64_t classes) {
  return c + Vec::width <= classes || classes < Vec::width ? c : classes - Vec::width;
}

// Rows `row` floats apart; a row of fewer classes than a vector is read past its end.
inline void pack_rows(const float* p, int64_t row, int64_t classes, float* lanes) {
  for (int j = 0; j < kLanes; j += Vec::width) {
    for (int64_t c = 0; c < classes; c += Vec::width) {
      const int64_t at = square_at(c, classes);
      Vec square[Vec::width];
      for (int k = 0; k < Vec::width; ++k) square[k] = Vec::load(p + (j + k) * row + at);
      transpose(square);
      for (int k = 0; k < Vec::width && at + k < classes; ++k) store(lanes + (at + k) * kLanes + j, square[k]);
    }
  }
}

// Whether sixteen rows of floats may be read where they are.
inline bool lies_ready(const Job& job, const Matrix& m, const Group& g, int64_t classes) {
  const Problem& p = *job.problem;
  const int64_t beyond = classes < Vec::width ? Vec::width - classes : 0, left = job.rows - g.first - kLanes;
  return m.dtype == Dtype::f32 && m.step == 1 && p.inner == 1 && m.outer >= classes && left >= 0 &&
         left * m.outer >= beyond;
}

inline void pack_rows(const Job& job, const Matrix& m, const Group& g, float* buffer, float* lanes) {
  const Problem& p = *job.problem;
  const int64_t classes = m.classes, row = padded(classes);
  if (lies_ready(job, m, g, classes)) {
    return pack_rows((const float*)side_of(m, p.inner, g.first).data, m.outer, classes, lanes);
  }
  for (int j = 0; j < g.count; ++j) stage<Vec>(side_of(m, p.inner, g.first + j), classes, buffer + j * row);
  for (int j = g.count; j < kLanes; ++j) memset(buffer + j * row, 0, row * sizeof(float));
  pack_rows(buffer, row, classes, lanes);
}

inline void pack(const Job& job, const Matrix& m, const Group& g, float* buffer, float* lanes) {
  const Problem& p = *job.problem;
  if (!lanes_in_memory(p)) return pack_rows(job, m, g, buffer, lanes);
  const Side side = side_of(m, p.inner, g.first);
  switch (side.dtype) {
    case Dtype::bf16: return pack_neighbours((const Bf16*)side.data, side.step, m.classes, g.count, lanes);
    case Dtype::f16: return pack_neighbours((const Half*)side.data, side.step, m.classes, g.count, lanes);
    default: return pack_neighbours((const float*)side.data, side.step, m.classes, g.count, lanes);
  }
}

template <class E>
inline void unpack_neighbours(const float* lanes, int64_t classes, int count, E* p, int64_t step) {
  for (int64_t c = 0; c < classes; ++c, p += step, lanes += kLanes) {
    for (int j = 0; j < count; j += Vec::width) {
      const Vec x = Vec::load(lanes + j);
      if (count - j >= Vec::width) {
        store(p + j, x);
      } else {
        store_first(p + j, count - j, x);
      }
    }
  }
}

// Rows `row` floats apart, of whole vectors: what is past a row's end is overwritten by the row behind.
inline void unpack_rows(const float* lanes, int64_t classes, float* p, int64_t row) {
  for (int j = 0; j < kLanes; j += Vec::width) {
    for (int64_t c = 0; c < classes; c += Vec::width) {
      const int64_t at = square_at(c, classes);
      Vec square[Vec::width];
      for (int k = 0; k < Vec::width; ++k) square[k] = Vec::load(lanes + (at + k < classes ? at + k : at) * kLanes + j);
      transpose(square);
      for (int k = 0; k < Vec::width; ++k) store(p + (j + k) * row + at, square[k]);
    }
  }
}

inline void unpack(const Job& job, const Matrix& m, const Group& g, float* buffer, const float* lanes) {
  const Problem& p = *job.problem;
  const Side first = side_of(m, p.inner, g.first);
  char* const data = (char*)first.data;
  if (lanes_in_memory(p) && m.inner == 1) {
    switch (first.dtype) {
      case Dtype::bf16: return unpack_neighbours(lanes, m.classes, g.count, (Bf16*)data, first.step);
      case Dtype::f16: return unpack_neighbours(lanes, m.classes, g.count, (Half*)data, first.step);
      default: return unpack_neighbours(lanes, m.classes, g.count, (float*)data, first.step);
    }
  }
  if (m.classes >= Vec::width && lies_ready(job, m, g, m.classes)) {
    return unpack_rows(lanes, m.classes, (float*)data, m.outer);
  }
  const bool dense = p.inner == 1 && m.step == 1 && m.outer == m.classes;
  const int64_t row = dense ? m.classes : padded(m.classes);
  unpack_rows(lanes, m.classes, buffer, row);
  if (dense) return unstage<Vec>(buffer, g.count * m.classes, first);
  for (int j = 0; j < g.count; ++j) unstage<Vec>(buffer + j * row, m.classes, side_of(m, p.inner, g.first + j));
}

// A row without a soft term gets the student's logits for the teacher's, which are not to be seen.
inline void hide_teacher(const LaneTerms& terms, int64_t classes, const float* s, float* t) {
  for (int j = 0; j < kLanes; ++j) {
    if (terms.soft[j]) continue;
    for (int64_t c = 0; c < classes; ++c) t[c * kLanes + j] = s[c * kLanes + j];
  }
}

struct LaneArrays {
  float* s;
  float* t;
  float* d;  // becomes the gradient
  float* b;
  float* e;
};

// As many rows as go through the operations together.
using LaneVec = std::conditional_t<2 * Vec::width <= kLanes, Two, Vec>;

struct Values {
  float soft[kLanes];
  float hard[kLanes];
};

template <class V>
struct LaneSums {
  V a, b, d, q, others, at_label, centred;
};

template <class V>
inline V lane_max_of(const float* x, int64_t classes) {
  const V lowest = V::all(-INFINITY);
  V top = lowest;
  for (int64_t c = 0; c < classes; ++c) top = max(V::load(x + c * kLanes), top);
  return select(equal(top, lowest), V::all(0), top);
}

// Arrays begin at the first of the rows here.
template <int power, bool careful, class V>
inline void sum_lanes(const LaneArrays& arrays, int64_t classes, const Frame<V>& f, const Softening<V>& soft,
                      const Constants<Vec>& k, V label, LaneSums<V>& sums) {
  const V zero = V::all(0);
  const Softening<Vec> one = softening<Vec>(1);
  LaneSums<V> x = {zero, zero, zero, zero, zero, zero, zero};
  for (int64_t c = 0; c < classes; ++c) {
    const int64_t at = c * kLanes;
    const V s = V::load(arrays.s + at), t = V::load(arrays.t + at);
    V a, b, d;
    if constexpr (careful) {
      const Pair<V> pair = compare(s, t, f, soft, k);
      a = pair.a, b = pair.b, d = pair.d;
      x.q = x.q + pair.q;
    } else {
      const QuickPair<V> pair = compare_quickly<true>(s, t, f, soft, k);
      a = pair.a, b = pair.b, d = pair.d;
      x.q = fma(b, pair.v, x.q);
    }
    x.a = x.a + a;
    x.b = x.b + b;
    x.d = x.d + d;
    store(arrays.d + at, d);
    store(arrays.b + at, b);
    if constexpr (power != kNone) {
      const V centred = s - f.student_max, e = hard_exponential<power>(a, centred, one, k);
      const auto here = equal(label, V::all((float)c));
      if constexpr (power == 0) store(arrays.e + at, e);
      x.others = x.others + drop(here, e);
      x.at_label = x.at_label + keep(here, e);
      x.centred = x.centred + keep(here, centred);
    }
  }
  if constexpr (!careful) x.q = x.d - V::all(kLog2) * x.q;
  sums = x;
}

// As `is_good`, for every row here; the shift is not left in, and A is summed up by itself.
template <class V>
inline bool are_good(const LaneSums<V>& sums) {
  return !any(not_less(sums.q, V::all(INFINITY))) && !any(less(sums.q, V::all(kAgreement) * sums.b));
}

template <int power, class V>
inline void keep_lane_values(const LaneSums<V>& x, int j, const LaneTerms& terms, Values& values) {
  const V zero = V::all(0), nan = V::all(NAN), temperature = V::load(terms.temperature + j);
  V value = max(zero, x.q / x.b - above_log(x.d / x.b));
  value = select(equal(x.a, zero), nan, select(equal(x.b, zero), nan, value));
  store(values.soft + j, value * (V::load(terms.soft_scale + j) * temperature * temperature));
  if constexpr (power != kNone) {
    const auto unsure = less(x.at_label, x.others);
    const V all = x.others + x.at_label;
    const V log_all = log_one_plus(select(unsure, all - V::all(1), x.others / x.at_label));
    store(values.hard + j, V::load(terms.hard_scale + j) * (log_all - keep(unsure, x.centred)));
  }
}

template <int power, class V>
inline void lane_gradients(const LaneArrays& arrays, int64_t classes, int j, const LaneTerms& terms,
                           const LaneSums<V>& x, V label) {
  const V zero = V::all(0);
  const V soft_scale = V::load(terms.soft_scale + j), hard_scale = V::load(terms.hard_scale + j);
  const V from_d = soft_scale * V::load(terms.temperature + j) / x.a, from_b = (zero - from_d) * (x.d / x.b);
  const V from_e = hard_scale / (x.others + x.at_label), at_label = (zero - x.others) * from_e;
  const auto no_soft = equal(soft_scale, zero), no_hard = equal(hard_scale, zero);
  for (int64_t c = 0; c < classes; ++c) {
    const int64_t at = c * kLanes;
    const V d = V::load(arrays.d + at), b = V::load(arrays.b + at);
    V g = drop(no_soft, fma(d, from_d, b * from_b));
    if constexpr (power != kNone) {
      V e;
      if constexpr (power == 0) {
        e = V::load(arrays.e + at);
      } else {
        e = hard_exponential<power>(d + b, zero, Softening<Vec>{}, Constants<Vec>{});
      }
      g = g + drop(no_hard, select(equal(label, V::all((float)c)), at_label, e * from_e));
    }
    store(arrays.d + at, g);
  }
}

// Rows j .. j + LaneVec::width of a group.
template <int power>
__attribute__((noinline)) void lanes_of_vector(const LaneArrays& group, int64_t classes, int j, bool gradient,
                                               const LaneTerms& terms, const Softening<LaneVec>& soft,
                                               Values& values) {
  using V = LaneVec;
  const LaneArrays arrays = {group.s + j, group.t + j, group.d + j, group.b + j, group.e + j};
  const Frame<V> f = frame(lane_max_of<V>(arrays.s, classes), lane_max_of<V>(arrays.t, classes), soft);
  const Constants<Vec> k = constants<Vec>();
  const V label = V::load(terms.label + j);
  LaneSums<V> sums;
  sum_lanes<power, false>(arrays, classes, f, soft, k, label, sums);
  if (!are_good(sums)) sum_lanes<power, true>(arrays, classes, f, soft, k, label, sums);
  keep_lane_values<power>(sums, j, terms, values);
  if (gradient) lane_gradients<power>(arrays, classes, j, terms, sums, label);
}

inline Softening<LaneVec> softening_of(const Problem& p, const LaneTerms& terms, int j) {
  constexpr int width = LaneVec::width;
  float numbers[4][width];
  const bool same = p.temperature.values == nullptr;
  for (int i = 0; i < width; ++i) {
    const SofteningNumbers x = softening_numbers(same ? p.temperature.number : terms.temperature[j + i]);
    numbers[0][i] = x.scale;
    numbers[1][i] = x.scale_low;
    numbers[2][i] = x.lowest;
    numbers[3][i] = x.inverse;
  }
  return {LaneVec::load(numbers[0]), LaneVec::load(numbers[1]), LaneVec::load(numbers[2]), LaneVec::load(numbers[3])};
}

using LanesOfVector = void (*)(const LaneArrays&, int64_t, int, bool, const LaneTerms&, const Softening<LaneVec>&,
                               Values&);

inline LanesOfVector lanes_of_vector_for(const Problem& p) {
  if (!p.hard) return lanes_of_vector<kNone>;
  if (p.temperature.values != nullptr) return lanes_of_vector<0>;
  switch (power_of(p.temperature.number)) {
    case 1: return lanes_of_vector<1>;
    case 2: return lanes_of_vector<2>;
    case 4: return lanes_of_vector<4>;
    default: return lanes_of_vector<0>;
  }
}

inline void keep_values(const Job& job, const Group& g, const LaneTerms& terms, const Values& values) {
  for (int j = 0; j < g.count; ++j) {
    double* const row = job.values + 2 * (g.first + j);
    row[0] = terms.soft[j] ? values.soft[j] : 0;
    row[1] = terms.hard[j] ? values.hard[j] : 0;
  }
}

// Faulty rows are computed like the others and overwritten.
inline void fail_rows(const Job& job, const Group& g) {
  for (int j = 0; j < g.count; ++j) {
    RowTerms terms;
    const uint32_t fault = row_terms(job, g.first + j, terms);
    if (fault != kNoFault) fail(job, g.first + j, fault);
  }
}

void process_lanes(const Job& job, int64_t begin, int64_t end) {
  const Problem& p = *job.problem;
  const int64_t classes = p.student.classes, size = classes * kLanes;
  float* const memory = (float*)scratch((5 * size + (padded(classes) + 1) * kLanes) * sizeof(float));
  const LaneArrays arrays = {memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size};
  float* const buffer = memory + 5 * size;
  const LanesOfVector compute = lanes_of_vector_for(p);
  const bool gradient = p.student_gradient.data != nullptr;
  LaneTerms terms;
  terms.filled = false;
  Values values;
  Softening<LaneVec> soft;
  if (p.temperature.values == nullptr) soft = softening_of(p, terms, 0);
  for (int64_t i = begin; i < end; ++i) {
    const Group g = group_at(job, i);
    const uint32_t fault = lane_terms(job, g.first, g.count, terms);
    pack(job, p.student, g, buffer, arrays.s);
    pack(job, p.teacher, g, buffer, arrays.t);
    hide_teacher(terms, classes, arrays.s, arrays.t);
    for (int j = 0; j < g.count; j += LaneVec::width) {
      if (p.temperature.values != nullptr) soft = softening_of(p, terms, j);
      compute(arrays, classes, j, gradient, terms, soft, values);
    }
    keep_values(job, g, terms, values);
    if (gradient) unpack(job, p.student_gradient, g, buffer, arrays.d);
    if (fault != kNoFault) fail_rows(job, g);
  }
}

}  // namespace
}  // namespace kdengine::cpu
