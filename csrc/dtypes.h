// torch's element types as those of problem.h.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "problem.h"

namespace kdengine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_float(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

inline bool is_integer(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short ||
         type == ScalarType::Char || type == ScalarType::Byte;
}

// Anything but the other three counts as float32: ask is_float first.
inline Dtype float_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Double: return Dtype::f64;
    default: return Dtype::f32;
  }
}

}  // namespace kdengine
