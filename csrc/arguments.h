// From the operator's arguments to a checked Problem with memory for its outputs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace kdengine {

using torch::stable::Tensor;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The operator's arguments, in the schema's order and meaning.
struct Arguments {
  const Tensor& student;
  const Tensor& teacher;
  const std::optional<Tensor>& labels;
  double temperature;
  double soft_weight;
  double hard_weight;
  const std::optional<Tensor>& temperatures;
  const std::optional<Tensor>& soft_weights;
  const std::optional<Tensor>& hard_weights;
  const std::optional<Tensor>& mask;
  const std::optional<Tensor>& teacher_indices;
  int64_t dim;
  int64_t divergence;
  double beta;
  double label_smoothing;
  int64_t ignore_index;
  int64_t reduction;
  int64_t tail;
  bool terms;
  bool student_gradient;
  bool teacher_gradient;
};

// A problem, the tensors that its outputs lie in, and the copies that its pointers point into. Not to be copied: terms
// that nobody asked for lie in `unread`.
struct Call {
  Problem problem;
  Outputs outputs;
  std::vector<Tensor> kept;
};

// Throws std::runtime_error for arguments that no kernel may see; values of labels, indices and tensors of numbers are
// not looked at. Conversions and copies are made only where the kernels need them.
Call prepare(const Arguments& arguments);

}  // namespace kdengine
