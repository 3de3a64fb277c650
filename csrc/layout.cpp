#include "layout.h"

#include <array>

#include "dtypes.h"

namespace kdengine {
namespace {

// The one stride that walks through dimensions begin .. end - 1 in row-major order, if there is one.
bool common_stride(const int64_t* sizes, const int64_t* strides, int64_t begin, int64_t end, int64_t* stride) {
  bool first = true;
  int64_t reach = 0;
  *stride = 0;
  for (int64_t d = end - 1; d >= begin; --d) {
    if (sizes[d] == 1) continue;
    if (first) *stride = strides[d];
    if (!first && strides[d] != reach) return false;
    first = false;
    reach = strides[d] * sizes[d];
  }
  return true;
}

std::array<Matrix*, 5> matrices(Problem* problem) {
  return {&problem->student, &problem->teacher, &problem->probabilities, &problem->student_gradient,
          &problem->teacher_gradient};
}

void into_outer(Problem* problem) {
  for (Matrix* matrix : matrices(problem)) {
    matrix->outer = matrix->inner;
    matrix->inner = 0;
  }
  problem->outer *= problem->inner;
  problem->inner = 1;
}

void into_inner(Problem* problem) {
  for (Matrix* matrix : matrices(problem)) {
    matrix->inner = matrix->outer;
    matrix->outer = 0;
  }
  problem->inner = problem->outer;
  problem->outer = 1;
}

bool one_stride_for_all_rows(Problem* problem) {
  for (const Matrix* matrix : matrices(problem)) {
    if (matrix->data != nullptr && matrix->outer != problem->inner * matrix->inner) return false;
  }
  return true;
}

bool rows_are_adjacent(const Matrix& matrix) { return matrix.outer == 1 && matrix.step > 1; }

}  // namespace

bool common_stride(const Tensor& tensor, int64_t* stride) {
  return common_stride(tensor.sizes().data(), tensor.strides().data(), 0, tensor.dim(), stride);
}

bool as_matrix(const Tensor& tensor, int64_t dim, Matrix* matrix) {
  const int64_t* sizes = tensor.sizes().data();
  const int64_t* strides = tensor.strides().data();
  matrix->classes = sizes[dim];
  matrix->step = sizes[dim] == 1 ? 1 : strides[dim];
  if (!common_stride(sizes, strides, 0, dim, &matrix->outer)) return false;
  if (!common_stride(sizes, strides, dim + 1, tensor.dim(), &matrix->inner)) return false;
  matrix->data = const_cast<void*>(tensor.const_data_ptr());
  matrix->dtype = float_dtype(tensor);
  return true;
}

void count_rows(const Tensor& logits, int64_t dim, Problem* problem) {
  const auto sizes = logits.sizes();
  problem->outer = problem->inner = 1;
  for (int64_t d = 0; d < dim; ++d) problem->outer *= sizes[d];
  for (size_t d = dim + 1; d < sizes.size(); ++d) problem->inner *= sizes[d];
}

bool one_per_row(const Tensor& tensor, const Tensor& logits, int64_t dim) {
  const auto sizes = tensor.sizes(), whole = logits.sizes();
  if (sizes.size() + 1 != whole.size()) return false;
  for (int64_t d = 0; d < static_cast<int64_t>(sizes.size()); ++d) {
    if (sizes[d] != whole[d < dim ? d : d + 1]) return false;
  }
  return true;
}

void merge_rows(Problem* problem) {
  if (problem->inner > 1 && (problem->outer == 1 || one_stride_for_all_rows(problem))) into_outer(problem);
  if (problem->inner == 1 && rows_are_adjacent(problem->student) && rows_are_adjacent(problem->teacher)) {
    into_inner(problem);
  }
}

}  // namespace kdengine
