#include "scaling.h"

#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "dtypes.h"
#include "layout.h"

namespace kdengine {
namespace {

Tensor as_numbers(const Tensor& factor) {
  const ScalarType type = factor.scalar_type();
  if (type == ScalarType::Float || type == ScalarType::Double) return factor;
  if (!is_float(factor)) refuse("the factor of a gradient must hold floating point numbers");
  return torch::stable::to(factor, ScalarType::Float);
}

}  // namespace

Scaling prepare_scaling(const Tensor& gradient, const Tensor& factor, int64_t dim) {
  const int64_t dims = gradient.dim();
  if (dim < -dims || dim >= dims) refuse("dim ", dim, " is outside the gradient's ", dims, " dimensions");
  if (dim < 0) dim += dims;
  if (factor.get_device_index() != gradient.get_device_index()) refuse("the factor is on another device");
  if (factor.dim() != 0 && !one_per_row(factor, gradient, dim)) refuse("the factor has neither one value nor one per row");
  Problem rows;
  Matrix matrix;
  count_rows(gradient, dim, &rows);
  if (!is_float(gradient) || !as_matrix(gradient, dim, &matrix)) refuse("this is no gradient of kd_loss");
  Tensor values = as_numbers(factor);
  int64_t stride = 0;
  if (factor.dim() != 0 && !common_stride(values, &stride)) {
    values = torch::stable::contiguous(values);
    stride = 1;
  }
  return {rows, matrix, {0, values.const_data_ptr(), float_dtype(values), stride}, values};
}

}  // namespace kdengine
