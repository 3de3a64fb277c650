// Tensors of any shape and strides seen as the (outer, classes, inner) matrices of problem.h.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "problem.h"

namespace kdengine {

using torch::stable::Tensor;

// The tensor as a matrix whose classes lie in dimension `dim`, or false where the dimensions on one side of `dim` have
// no common stride, so that it takes a copy.
bool as_matrix(const Tensor& tensor, int64_t dim, Matrix* matrix);

// The one stride that walks through a whole tensor in row-major order, if there is one.
bool common_stride(const Tensor& tensor, int64_t* stride);

// Sets the problem's rows: the sizes before the class dimension, and those behind it.
void count_rows(const Tensor& logits, int64_t dim, Problem* problem);

// Whether `tensor` has the shape of `logits` without the class dimension.
bool one_per_row(const Tensor& tensor, const Tensor& logits, int64_t dim);

// Rows in one dimension where every matrix allows it: `outer` where each row is contiguous, `inner` where neighbouring
// rows are adjacent in memory (a transposed matrix).
void merge_rows(Problem* problem);

}  // namespace kdengine
