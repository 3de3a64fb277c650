// One call of the distillation loss as plain data: what the binding hands to every kernel, on any device.
// No torch header is needed here, so kernels build and are tested without torch.
#pragma once

#include <cstdint>

namespace kdengine {

enum class Dtype : int32_t { f16, bf16, f32, f64 };
enum class Divergence : int32_t { forward_kl, reverse_kl, jsd };
enum class Tail : int32_t { bin, renormalize };
enum class Reduction : int32_t { none, sum, mean };

// A tensor seen as (outer, classes, inner): element (o, c, i) lies at data + o * outer + c * step + i * inner,
// strides in elements. Row number r is o * Problem::inner + i. A stride of 0 is an expanded dimension.
struct Matrix {
  void* data = nullptr;  // null: the tensor is not there
  Dtype dtype = Dtype::f32;
  int64_t classes = 0;
  int64_t outer = 0;
  int64_t step = 1;
  int64_t inner = 0;
};

// A number for all rows, or one value per row: values[r * stride]; stride 0 is a 0-dim tensor.
struct PerRow {
  double number = 0;
  const void* values = nullptr;  // null: `number` holds for every row
  Dtype dtype = Dtype::f32;      // f32 or f64
  int64_t stride = 0;
};

struct Problem {
  int64_t outer = 0;  // rows = outer * inner
  int64_t inner = 1;
  bool wide = false;  // accumulate in float64 (an input is float64), else in float32

  Matrix student;
  Matrix teacher;                    // logits; with `indices`, the k values of a top-k teacher
  const int64_t* indices = nullptr;  // top-k: class of teacher element (o, c, i), at the teacher's own strides
  Tail tail = Tail::bin;

  const int64_t* labels = nullptr;  // class id of row r, or null
  Matrix probabilities;             // labels as probabilities, or without data; never both
  int64_t ignore_index = -100;
  double smoothing = 0;

  const bool* mask = nullptr;  // row r takes part, or null: every row does
  Divergence divergence = Divergence::forward_kl;
  double beta = 0.5;
  Reduction reduction = Reduction::mean;
  bool soft = true;   // false: the soft term is not asked for, the teacher is not read
  bool hard = false;  // true: labels or probabilities are there, and are asked for
  PerRow temperature;
  PerRow soft_weight;
  PerRow hard_weight;

  // Outputs, in float64 if `wide`, else float32. For Reduction::none one value per row, else one value. Terms that nobody
  // asked for are null.
  void* loss = nullptr;
  void* soft_term = nullptr;
  void* hard_term = nullptr;
  Matrix student_gradient;  // without data: not needed; dtype and classes of the input, strides of its own
  Matrix teacher_gradient;
};

// What a kernel found in rows that take part; such a row's value and gradient are NaN.
enum Fault : uint32_t {
  kNoFault = 0,
  kLabelOutside = 1,         // a class id outside 0 .. classes - 1 that is not ignore_index
  kTemperatureNotPositive = 2,
  kIndexOutside = 4,         // a top-k index outside the student's classes
  kTooMuchMass = 8,          // Tail::bin: probabilities of the listed values sum to more than 1.05
};

}  // namespace kdengine
