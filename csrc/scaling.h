// The arguments of the operator that scales a gradient in backward.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "problem.h"

namespace kdengine {

// `rows` has the number of rows and nothing else; `kept` is a copy that the factor may point into.
struct Scaling {
  Problem rows;
  Matrix gradient;
  PerRow factor;
  torch::stable::Tensor kept;
};

// `factor` is one value or one per row of `gradient`, on the same device. Throws std::runtime_error for anything else.
Scaling prepare_scaling(const torch::stable::Tensor& gradient, const torch::stable::Tensor& factor, int64_t dim);

}  // namespace kdengine
