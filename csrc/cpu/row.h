// One row with its classes in lanes: forward KL with the student's gradient, and cross-entropy with class ids. One
// sweep over the logits, block by block, keeps d and b (and e) of each class; a second one makes the gradient of them.
#pragma once

namespace kdengine::cpu {
namespace {

// What the first sweep wants in cache soon: the same place of the block behind.
struct Ahead {
  const char* student;
  const char* teacher;
  int student_size;  // bytes of a class
  int teacher_size;
};

template <class E>
inline const float* widen_block(const E* p, int n, float* buffer, float& largest) {
  Vec top = Vec::all(largest), other = top;
  int i = 0;
  for (; i + 2 * Vec::width <= n; i += 2 * Vec::width) {
    const Vec x = Vec::load(p + i), y = Vec::load(p + i + Vec::width);
    top = max(x, top);
    other = max(y, other);
    if constexpr (sizeof(E) != sizeof(float)) {
      store(buffer + i, x);
      store(buffer + i + Vec::width, y);
    }
  }
  for (; i < n; i += Vec::width) {
    const int count = n - i < Vec::width ? n - i : Vec::width;
    const Vec x = count == Vec::width ? Vec::load(p + i) : load_first<Vec>(p + i, count, -INFINITY);
    top = max(x, top);
    if constexpr (sizeof(E) != sizeof(float)) store(buffer + i, x);
  }
  largest = lane_max(max(top, other));
  if constexpr (sizeof(E) == sizeof(float)) return p;
  return buffer;
}

// The block as floats, in place where it is so already, and the maximum of it and `largest`.
inline const float* open_block(const Side& side, int n, float* buffer, float& largest) {
  if (side.step != 1) {
    stage<Vec>(side, n, buffer);
    return widen_block((const float*)buffer, n, buffer, largest);
  }
  switch (side.dtype) {
    case Dtype::bf16: return widen_block((const Bf16*)side.data, n, buffer, largest);
    case Dtype::f16: return widen_block((const Half*)side.data, n, buffer, largest);
    default: return widen_block((const float*)side.data, n, buffer, largest);
  }
}

constexpr float kFar = 1e36f;  // below the reference by this: adds nothing at any temperature, and is finite

constexpr int kNone = -1;  // no hard term; else the power of a that e is, 0 for an exponential of its own

// Of careful sums all but v, of quick ones b, d, v and e.
struct Sums {
  Vec a, b, d, q, v, e;
};

template <int power, class V, class F>
KDENGINE_INLINE V hard_exponential(V a, V centred, const Softening<F>& one, const Constants<Vec>& c) {
  if constexpr (power == 0) return exponential(centred, one, c);
  if constexpr (power == 1) return a;
  if constexpr (power == 2) return a * a;
  return (a * a) * (a * a);
}

// What stays the same over a block.
struct Setting {
  Softening<Vec> soft;
  Softening<Vec> one;
  Frame<Vec> frame;
  Constants<Vec> constants;
};

inline Mask lane(int i) {
  float numbers[Vec::width];
  for (int k = 0; k < Vec::width; ++k) numbers[k] = (float)k;
  return equal(Vec::load(numbers), Vec::all((float)i));
}

inline Vec without(int label, Vec a) { return drop(lane(label), a); }
inline Two without(int label, Two a) { return {without(label, a.low), without(label - Vec::width, a.high)}; }

// `label` counts from the first of these classes.
template <int power, bool careful, bool has_label, class V>
KDENGINE_INLINE void add_classes(Sums& sums, V s, V t, const Setting& x, int label, float* at_d, float* at_b,
                                 float* at_e) {
  V a, b, d;
  if constexpr (careful) {
    const Pair<V> pair = compare(s, t, x.frame, x.soft, x.constants);
    a = pair.a, b = pair.b, d = pair.d;
    sums.a = sums.a + folded(a);
    sums.q = sums.q + folded(pair.q);
  } else {
    const QuickPair<V> pair = compare_quickly<false>(s, t, x.frame, x.soft, x.constants);
    b = pair.b, d = pair.d;
    sums.v = add_product(b, pair.v, sums.v);
    if constexpr (power > 0) a = b + d;
  }
  store(at_d, d);
  store(at_b, b);
  sums.b = sums.b + folded(b);
  sums.d = sums.d + folded(d);
  if constexpr (power != kNone) {
    V hard = hard_exponential<power>(a, s - V(x.frame.student_max), x.one, x.constants);
    if constexpr (power == 0) store(at_e, hard);
    if constexpr (has_label) hard = without(label, hard);
    sums.e = sums.e + folded(hard);
  }
}

// d, b (and e) have room for whole vectors; they may be where s and t are.
template <int power, bool careful>
__attribute__((noinline)) void sum_block(const float* s, const float* t, int n, int label, double temperature,
                                         Block& block, float* d, float* b, float* e, const Ahead& ahead) {
  const float student_max = finite(block.student_max), teacher_max = finite(block.teacher_max);
  const Softening<Vec> soft = softening<Vec>(temperature);
  const Setting setting = {soft, softening<Vec>(1), frame(Vec::all(student_max), Vec::all(teacher_max), soft),
                           constants<Vec>()};
  const Vec zero = Vec::all(0);
  Sums sums = {zero, zero, zero, zero, zero, zero};
  const int whole = n / Two::width * Two::width;
  const int label_at = power == kNone || label < 0 || label >= whole ? whole : label / Two::width * Two::width;
  const int64_t step_s = ahead.student_size * Two::width, step_t = ahead.teacher_size * Two::width;
  const char *ahead_s = ahead.student, *ahead_t = ahead.teacher;
  int i = 0;
  for (int end = label_at;;) {
    for (; i < end; i += Two::width, ahead_s += step_s, ahead_t += step_t) {
      prefetch(ahead_s);
      prefetch(ahead_t);
      add_classes<power, careful, false>(sums, Two::load(s + i), Two::load(t + i), setting, 0, d + i, b + i, e + i);
    }
    if (end == whole) break;
    add_classes<power, careful, true>(sums, Two::load(s + i), Two::load(t + i), setting, label - i, d + i, b + i,
                                      e + i);
    i += Two::width;
    end = whole;
  }
  for (; i < n; i += Vec::width) {
    const int count = n - i < Vec::width ? n - i : Vec::width;
    const Vec x = count == Vec::width ? Vec::load(s + i) : load_first<Vec>(s + i, count, student_max - kFar);
    const Vec y = count == Vec::width ? Vec::load(t + i) : load_first<Vec>(t + i, count, teacher_max - kFar);
    add_classes<power, careful, true>(sums, x, y, setting, label - i, d + i, b + i, e + i);
  }
  block.b = lane_sum(sums.b);
  block.d = lane_sum(sums.d);
  block.a = careful ? lane_sum(sums.a) : block.b + block.d;
  block.q = careful ? lane_sum(sums.q) : block.d - M_LN2 * lane_sum(sums.v);
  block.e = power == kNone ? 0 : lane_sum(sums.e);
}

using SumBlock = void (*)(const float*, const float*, int, int, double, Block&, float*, float*, float*, const Ahead&);

template <bool careful>
inline SumBlock sum_block_for(const RowTerms& terms) {
  if (!terms.hard) return sum_block<kNone, careful>;
  switch (power_of(terms.temperature)) {
    case 1: return sum_block<1, careful>;
    case 2: return sum_block<2, careful>;
    case 4: return sum_block<4, careful>;
    default: return sum_block<0, careful>;
  }
}

inline int64_t classes_in(const Row& row, int64_t block) {
  const int64_t rest = row.classes - block * kBlock;
  return rest < kBlock ? rest : kBlock;
}

// What the sweep over the chunks of one row goes through.
struct Sweep {
  Side student;
  Side teacher;
  SumBlock quick;
  SumBlock careful;
  bool with_care;  // from the first block on that needed it
  float student_max;
  float teacher_max;
};

inline void sum_classes(Row& row, Sweep& sweep, int64_t k, const Side& ahead_s, const Side& ahead_t) {
  const int64_t at = k * kBlock;
  const int n = (int)classes_in(row, k);
  float* const d = row.d + at;
  float* const b = row.b + at;
  float* const e = row.e == nullptr ? d : row.e + at;
  const int64_t label = row.terms.hard ? row.terms.label - at : -1;
  const int inside = label >= 0 && label < n ? (int)label : -1;
  const Ahead ahead = {ahead_s.data, ahead_t.data, (int)size_of(ahead_s.dtype), (int)size_of(ahead_t.dtype)};
  Block& block = row.blocks[k];
  for (;;) {
    const float* s = open_block(after(sweep.student, at), n, d, sweep.student_max);
    const float* t = open_block(after(sweep.teacher, at), n, b, sweep.teacher_max);
    block.student_max = sweep.student_max;
    block.teacher_max = sweep.teacher_max;
    if (inside >= 0) row.label_logit = s[inside];
    const SumBlock sum = sweep.with_care ? sweep.careful : sweep.quick;
    sum(s, t, n, inside, row.terms.temperature, block, d, b, e, ahead);
    const float shift = block.student_max - block.teacher_max;
    if (sweep.with_care || is_good(shift, row.terms.temperature, block.q, block.a, block.b)) return;
    sweep.with_care = true;
  }
}

// `next` is the row whose first block is read after the last one of this row.
void sum_chunk(const Job& job, Row& row, int64_t chunk, int64_t next) {
  const Problem& p = *job.problem;
  const Side next_student = side_of(p.student, p.inner, next), next_teacher = side_of(p.teacher, p.inner, next);
  const int64_t first = chunk * kChunk;
  const int64_t last = first + kChunk < row.block_count ? first + kChunk : row.block_count;
  Sweep sweep = {side_of(p.student, p.inner, row.index),
                 side_of(p.teacher, p.inner, row.index),
                 sum_block_for<false>(row.terms),
                 sum_block_for<true>(row.terms),
                 false,
                 -INFINITY,
                 -INFINITY};
  for (int64_t k = first; k < last; ++k) {
    const bool ends = k + 1 == row.block_count;
    const int64_t behind = (k + 1) * kBlock;
    sum_classes(row, sweep, k, ends ? next_student : after(sweep.student, behind),
                ends ? next_teacher : after(sweep.teacher, behind));
  }
}

template <int power>
KDENGINE_INLINE Vec gradient_of(const Vec& d, const Vec& b, const float* e, Vec from_d, Vec from_b, Vec from_e) {
  const Vec soft = fma(d, from_d, b * from_b);
  if constexpr (power == kNone) return soft;
  if constexpr (power == 0) return fma(Vec::load(e), from_e, soft);
  return fma(hard_exponential<power>(d + b, d, Softening<Vec>{}, Constants<Vec>{}), from_e, soft);
}

template <class E, int power>
__attribute__((noinline)) void write_block(const float* d, const float* b, const float* e, const Block& block, int n,
                                           bool around, void* out) {
  E* p = (E*)out;
  const Vec from_d = Vec::all(block.from_d), from_b = Vec::all(block.from_b), from_e = Vec::all(block.from_e);
  const auto at = [&](int i) {
    return gradient_of<power>(Vec::load(d + i), Vec::load(b + i), e + i, from_d, from_b, from_e);
  };
  int i = 0;
  if (around) {
    constexpr int bytes = Vec::width * sizeof(E);
    const int head = (int)(-(uintptr_t)p % bytes / sizeof(E));
    if (head > 0 && head < n) {
      store_first(p, head, at(0));
      i = head;
    }
    if (head < n) {
      for (; i + Vec::width <= n; i += Vec::width) stream(p + i, at(i));
    }
  } else {
    for (; i + Vec::width <= n; i += Vec::width) store(p + i, at(i));
  }
  if (i < n) {
    float rest[3][Vec::width] = {};
    memcpy(rest[0], d + i, (n - i) * sizeof(float));
    memcpy(rest[1], b + i, (n - i) * sizeof(float));
    if (power == 0) memcpy(rest[2], e + i, (n - i) * sizeof(float));
    const Vec x =
        gradient_of<power>(Vec::load(rest[0]), Vec::load(rest[1]), rest[2], from_d, from_b, from_e);
    store_first(p + i, n - i, x);
  }
}

using WriteBlock = void (*)(const float*, const float*, const float*, const Block&, int, bool, void*);

template <class E>
inline WriteBlock write_block_of(const RowTerms& terms) {
  if (!terms.hard) return write_block<E, kNone>;
  switch (power_of(terms.temperature)) {
    case 1: return write_block<E, 1>;
    case 2: return write_block<E, 2>;
    case 4: return write_block<E, 4>;
    default: return write_block<E, 0>;
  }
}

inline WriteBlock write_block_for(const RowTerms& terms, Dtype dtype) {
  if (dtype == Dtype::bf16) return write_block_of<Bf16>(terms);
  if (dtype == Dtype::f16) return write_block_of<Half>(terms);
  return write_block_of<float>(terms);
}

// Looks up where the pages of the block behind lie while this one is written: stores wait for that, reads ahead do not.
inline void find_pages_behind(const Side& out) {
  constexpr int64_t page = 4096;
  const int64_t block = kBlock * size_of(out.dtype);
  for (int64_t at = block; at < 2 * block; at += page) prefetch(out.data + at);
}

void write_chunk(const Job& job, const Row& row, int64_t chunk) {
  const Problem& p = *job.problem;
  const Side gradient = side_of(p.student_gradient, p.inner, row.index);
  const int64_t first = chunk * kChunk;
  const int64_t last = first + kChunk < row.block_count ? first + kChunk : row.block_count;
  const bool dense = gradient.step == 1;
  const WriteBlock write = write_block_for(row.terms, dense ? gradient.dtype : Dtype::f32);
  for (int64_t k = first; k < last; ++k) {
    const int64_t at = k * kBlock;
    const int n = (int)classes_in(row, k);
    const int64_t label = row.terms.hard ? row.terms.label - at : -1;
    const bool inside = label >= 0 && label < n;
    const Block& block = row.blocks[k];
    const float* e = row.e == nullptr ? row.d : row.e;
    const float at_label =
        inside ? row.d[at + label] * block.from_d + row.b[at + label] * block.from_b + row.label_gradient : 0;
    const Side out = after(gradient, at);
    if (dense) {
      if (job.stream) find_pages_behind(out);
      // The label's element is stored again: not around the caches, which would write its line to memory twice.
      write(row.d + at, row.b + at, e + at, block, n, job.stream && !inside, (void*)out.data);
    } else {
      write(row.d + at, row.b + at, e + at, block, n, false, row.d + at);
      unstage<Vec>(row.d + at, n, out);
    }
    if (inside) unstage<Vec>(&at_label, 1, after(out, label));
  }
}

}  // namespace
}  // namespace kdengine::cpu
