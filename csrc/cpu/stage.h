// Logits in: one side of a row, brought to consecutive numbers of the kernel's own type. Gradients out.
#pragma once

#include <string.h>

namespace kdengine::cpu {
namespace {

// One row of a Matrix.
struct Side {
  const char* data;
  Dtype dtype;
  int64_t step;  // elements
};

inline int64_t offset_of_row(const Matrix& m, int64_t inner, int64_t r) {
  return inner == 1 ? r * m.outer : r / inner * m.outer + r % inner * m.inner;
}

inline Side side_of(const Matrix& m, int64_t inner, int64_t r) {
  return {(const char*)m.data + offset_of_row(m, inner, r) * size_of(m.dtype), m.dtype, m.step};
}

inline Side after(const Side& side, int64_t i) {
  return {side.data + i * side.step * size_of(side.dtype), side.dtype, side.step};
}

// The lanes of a vector that lie past the end are filled up.
template <class V, class E>
inline V load_first(const E* p, int n, typename V::Scalar fill) {
  E raw[V::width];
  typename V::Scalar lanes[V::width];
  memset(raw, 0, sizeof raw);
  memcpy(raw, p, n * sizeof(E));
  store(lanes, V::load(raw));
  for (int i = n; i < V::width; ++i) lanes[i] = fill;
  return V::load(lanes);
}

template <class V, class E>
inline void store_first(E* p, int n, V x) {
  E lanes[V::width];
  store(lanes, x);
  memcpy(p, lanes, n * sizeof(E));
}

template <class E>
inline float one_wide(E x) {
  E lanes[Vec::width];
  float wide[Vec::width];
  memset(lanes, 0, sizeof lanes);
  lanes[0] = x;
  store(wide, Vec::load(lanes));
  return wide[0];
}
inline float one_wide(float x) { return x; }
inline double one_wide(double x) { return x; }

template <class E>
inline E one_narrow(float x) {
  E lanes[Vec::width];
  store(lanes, Vec::all(x));
  return lanes[0];
}
template <>
inline float one_narrow<float>(float x) {
  return x;
}

// Copies n classes of a side; the output is filled up to a whole number of vectors.
template <class V, class E>
inline void copy_in(const E* p, int64_t step, int64_t n, typename V::Scalar* out) {
  using S = typename V::Scalar;
  int64_t i = 0;
  if constexpr (sizeof(S) == 4 && sizeof(E) <= 4) {
    if (step == 1) {
      for (; i + V::width <= n; i += V::width) store(out + i, V::load(p + i));
    }
  }
  for (; i < n; ++i) out[i] = (S)one_wide(p[i * step]);
  for (; i % V::width != 0; ++i) out[i] = (S)-INFINITY;
}

template <class V>
inline void stage(const Side& side, int64_t n, typename V::Scalar* out) {
  switch (side.dtype) {
    case Dtype::f64: return copy_in<V>((const double*)side.data, side.step, n, out);
    case Dtype::f32: return copy_in<V>((const float*)side.data, side.step, n, out);
    case Dtype::bf16: return copy_in<V>((const Bf16*)side.data, side.step, n, out);
    case Dtype::f16: return copy_in<V>((const Half*)side.data, side.step, n, out);
  }
}

template <class V, class E>
inline void copy_out(const typename V::Scalar* in, int64_t n, E* p, int64_t step) {
  int64_t i = 0;
  if constexpr (sizeof(typename V::Scalar) == 4) {
    if (step == 1) {
      for (; i + V::width <= n; i += V::width) store(p + i, V::load(in + i));
    }
  }
  for (; i < n; ++i) p[i * step] = one_narrow<E>((float)in[i]);
}

template <class V>
inline void unstage(const typename V::Scalar* in, int64_t n, const Side& side) {
  char* data = (char*)side.data;
  switch (side.dtype) {
    case Dtype::f64:
      for (int64_t i = 0; i < n; ++i) ((double*)data)[i * side.step] = (double)in[i];
      return;
    case Dtype::f32: return copy_out<V>(in, n, (float*)data, side.step);
    case Dtype::bf16: return copy_out<V>(in, n, (Bf16*)data, side.step);
    case Dtype::f16: return copy_out<V>(in, n, (Half*)data, side.step);
  }
}

// A whole row of one value, 0 or NaN.
inline void fill(const Side& side, int64_t n, float value) {
  const int64_t size = size_of(side.dtype);
  char* data = (char*)side.data;
  if (value == 0 && side.step == 1) {
    memset(data, 0, n * size);
    return;
  }
  for (int64_t i = 0; i < n; ++i, data += side.step * size) {
    const Side one = {data, side.dtype, 1};
    unstage<Vec>(&value, 1, one);
  }
}

}  // namespace
}  // namespace kdengine::cpu
