#include "arguments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "check.h"
#include "dtypes.h"
#include "layout.h"

namespace kdengine {
namespace {

class Preparation {
 public:
  explicit Preparation(const Arguments& arguments)
      : given_(arguments),
        dim_(arguments.dim),
        device_type_(device_type(arguments.student)),
        device_index_(arguments.student.get_device_index()) {}

  Call run() {
    check_options();
    check_logits();
    count_rows(given_.student, dim_, &problem_);
    place_logits();
    place_labels();
    place_mask();
    place_numbers();
    Outputs outputs = allocate();
    merge_rows(&problem_);
    return {problem_, std::move(outputs), std::move(kept_)};
  }

 private:
  static int32_t device_type(const Tensor& tensor) {
    int32_t type;
    aoti_torch_get_device_type(tensor.get(), &type);
    return type;
  }

  static void check_code(const char* name, int64_t code, int64_t last) {
    if (code < 0 || code > last) refuse(name, " must lie in 0..", last, ", got ", code);
  }

  void check_options() const {
    if (!(given_.beta > 0 && given_.beta < 1)) refuse("beta must lie strictly between 0 and 1, got ", given_.beta);
    if (!(given_.label_smoothing >= 0 && given_.label_smoothing <= 1)) {
      refuse("label_smoothing must lie between 0 and 1, got ", given_.label_smoothing);
    }
    check_code("divergence", given_.divergence, 2);
    check_code("reduction", given_.reduction, 2);
    check_code("tail", given_.tail, 1);
  }

  void check_place(const char* name, const Tensor& tensor) const {
    int32_t layout;
    aoti_torch_get_layout(tensor.get(), &layout);
    if (layout != aoti_torch_layout_strided()) refuse(name, " must be a dense tensor");
    if (device_type(tensor) != device_type_ || tensor.get_device_index() != device_index_) {
      refuse(name, " is on another device than student");
    }
  }

  void check_logits() {
    const Tensor& student = given_.student;
    const Tensor& teacher = given_.teacher;
    if (!is_float(student)) refuse("student must hold floating point numbers");
    if (!is_float(teacher)) refuse("teacher must hold floating point numbers");
    check_place("student", student);
    check_place("teacher", teacher);
    const auto ours = student.sizes(), theirs = teacher.sizes();
    const auto dims = static_cast<int64_t>(ours.size());
    if (dim_ < -dims || dim_ >= dims) refuse("dim ", dim_, " is outside student's ", dims, " dimensions");
    if (dim_ < 0) dim_ += dims;
    if (ours.size() != theirs.size()) refuse("student has ", dims, " dimensions, teacher has ", theirs.size());
    for (int64_t d = 0; d < dims; ++d) {
      if (d != dim_ && ours[d] != theirs[d]) refuse("student and teacher differ in dimension ", d);
    }
    if (ours[dim_] == 0 || theirs[dim_] == 0) refuse("the class dimension is empty");
  }

  static bool same_shape(const Tensor& one, const Tensor& other) {
    const auto a = one.sizes(), b = other.sizes();
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
  }

  Tensor keep(Tensor tensor) {
    kept_.push_back(tensor);
    return tensor;
  }

  Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : keep(torch::stable::contiguous(tensor)); }

  Tensor as_ids(const Tensor& tensor) {
    return dense(tensor.scalar_type() == ScalarType::Long ? tensor : keep(torch::stable::to(tensor, ScalarType::Long)));
  }

  Matrix place(const Tensor& tensor) {
    Matrix matrix;
    if (!as_matrix(tensor, dim_, &matrix)) as_matrix(dense(tensor), dim_, &matrix);
    return matrix;
  }

  void place_logits() {
    problem_.wide = float_dtype(given_.student) == Dtype::f64 || float_dtype(given_.teacher) == Dtype::f64;
    problem_.divergence = static_cast<Divergence>(given_.divergence);
    problem_.beta = given_.beta;
    problem_.tail = static_cast<Tail>(given_.tail);
    problem_.reduction = static_cast<Reduction>(given_.reduction);
    problem_.student = place(given_.student);
    if (!given_.teacher_indices.has_value()) {
      problem_.teacher = place(given_.teacher);
      return;
    }
    const Tensor& indices = *given_.teacher_indices;
    if (!is_integer(indices)) refuse("teacher_indices must hold integers");
    check_place("teacher_indices", indices);
    if (!same_shape(indices, given_.teacher)) refuse("teacher_indices must have teacher's shape");
    as_matrix(dense(given_.teacher), dim_, &problem_.teacher);  // contiguous both: they share their strides
    problem_.indices = static_cast<const int64_t*>(as_ids(indices).const_data_ptr());
  }

  void place_labels() {
    problem_.ignore_index = given_.ignore_index;
    problem_.smoothing = given_.label_smoothing;
    if (!given_.labels.has_value()) return;
    const Tensor& labels = *given_.labels;
    check_place("labels", labels);
    problem_.hard = given_.hard_weights.has_value() || given_.hard_weight != 0;
    if (is_float(labels)) {
      if (!same_shape(labels, given_.student)) refuse("labels as probabilities must have student's shape");
      problem_.probabilities = place(labels);
      return;
    }
    if (!is_integer(labels)) refuse("labels must hold integers or floating point numbers");
    if (!one_per_row(labels, given_.student, dim_)) refuse("labels must have one class id per row");
    problem_.labels = static_cast<const int64_t*>(as_ids(labels).const_data_ptr());
  }

  void place_mask() {
    if (!given_.mask.has_value()) return;
    const Tensor& mask = *given_.mask;
    if (mask.scalar_type() != ScalarType::Bool) refuse("mask must hold bool");
    check_place("mask", mask);
    if (!one_per_row(mask, given_.student, dim_)) refuse("mask must have one value per row");
    problem_.mask = static_cast<const bool*>(dense(mask).const_data_ptr());
  }

  void place_numbers() {
    problem_.temperature = place_number("temperature", given_.temperature, given_.temperatures);
    problem_.soft_weight = place_number("soft_weight", given_.soft_weight, given_.soft_weights);
    problem_.hard_weight = place_number("hard_weight", given_.hard_weight, given_.hard_weights);
    if (!given_.temperatures.has_value() && !(given_.temperature > 0)) {
      refuse("temperature must be greater than 0, got ", given_.temperature);
    }
    problem_.soft = given_.soft_weights.has_value() || given_.soft_weight != 0;
  }

  PerRow place_number(const char* name, double number, const std::optional<Tensor>& given) {
    PerRow placed;
    if (!given.has_value()) {
      if (!std::isfinite(number)) refuse(name, " must be finite, got ", number);
      placed.number = number;
      return placed;
    }
    const Tensor values = as_numbers(name, *given);
    const auto dims = values.sizes().size();
    if (dims != 0 && !one_per_row(values, given_.student, dim_)) refuse(name, " must be a number or have one value per row");
    if (dims == 0 && values.is_cpu() && device_type_ != device_type(values)) {
      placed.number = read(values);
      return placed;
    }
    check_place(name, values);
    return dims == 0 ? PerRow{0, values.const_data_ptr(), float_dtype(values), 0} : place_values(values);
  }

  Tensor as_numbers(const char* name, const Tensor& tensor) {
    const Dtype type = float_dtype(tensor);
    if (is_float(tensor) && (type == Dtype::f32 || type == Dtype::f64)) return tensor;
    if (!is_float(tensor) && !is_integer(tensor)) refuse(name, " must hold real numbers");
    return keep(torch::stable::to(tensor, ScalarType::Double));
  }

  static double read(const Tensor& value) {
    const void* data = value.const_data_ptr();
    return float_dtype(value) == Dtype::f64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  }

  PerRow place_values(const Tensor& tensor) {
    int64_t stride;
    Tensor values = tensor;
    if (!common_stride(tensor, &stride)) {
      values = dense(tensor);
      stride = 1;
    }
    return {0, values.const_data_ptr(), float_dtype(values), stride};
  }

  Outputs allocate() {
    Tensor loss = allocate_term(&problem_.loss);
    Tensor soft = given_.terms ? allocate_term(&problem_.soft_term) : Tensor();
    Tensor hard = given_.terms ? allocate_term(&problem_.hard_term) : Tensor();
    return {std::move(loss), std::move(soft), std::move(hard),
            allocate_gradient(given_.student, given_.student_gradient, &problem_.student_gradient),
            allocate_gradient(given_.teacher, given_.teacher_gradient, &problem_.teacher_gradient)};
  }

  Tensor allocate_term(void** data) const {
    std::vector<int64_t> sizes, strides;
    if (problem_.reduction == Reduction::none) {
      const auto whole = given_.student.sizes();
      for (int64_t d = 0; d < static_cast<int64_t>(whole.size()); ++d) {
        if (d != dim_) sizes.push_back(whole[d]);
      }
      strides.assign(sizes.size(), 1);
      for (size_t d = sizes.size(); d > 1; --d) strides[d - 2] = strides[d - 1] * sizes[d - 1];
    }
    const int32_t type = problem_.wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    Tensor term = empty(sizes.size(), sizes.data(), strides.data(), type);
    *data = term.mutable_data_ptr();
    return term;
  }

  // With the input's own strides where rows can be walked in them, else contiguous; undefined where it is not needed.
  Tensor allocate_gradient(const Tensor& input, bool needed, Matrix* matrix) const {
    int32_t type;
    aoti_torch_get_dtype(input.get(), &type);
    if (!needed) return Tensor();
    if (input.is_contiguous()) {
      Tensor gradient = empty(input.dim(), input.sizes().data(), input.strides().data(), type);
      as_matrix(gradient, dim_, matrix);
      return gradient;
    }
    Tensor gradient = torch::stable::empty_like(input);
    if (!as_matrix(gradient, dim_, matrix)) {
      gradient = torch::stable::contiguous(gradient);
      as_matrix(gradient, dim_, matrix);
    }
    return gradient;
  }

  Tensor empty(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype) const {
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dims, sizes, strides, dtype, device_type_, device_index_, &handle));
    return Tensor(handle);
  }

  const Arguments& given_;
  int64_t dim_;
  int32_t device_type_;
  int32_t device_index_;
  Problem problem_;
  std::vector<Tensor> kept_;
};

}  // namespace

Call prepare(const Arguments& arguments) { return Preparation(arguments).run(); }

}  // namespace kdengine
