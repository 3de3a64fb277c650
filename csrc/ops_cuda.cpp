// The operators of the CUDA library, which is loaded after the CPU library: that one defines kd_loss. It is a library of
// its own because the shims for streams and device guards are in builds of torch for CUDA only.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "arguments.h"
#include "check.h"
#include "cuda/cuda.h"
#include "scaling.h"

namespace {

using kdengine::Outputs;
using kdengine::refuse;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Makes a tensor's device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& tensor) : index_(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(index_, &guard_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() { aoti_torch_delete_cuda_guard(guard_); }

  void* stream() const {
    void* stream;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  CUDAGuardHandle guard_;
};

void refuse_error(int error) {
  if (error != 0) refuse("CUDA error ", error);
}

// The caching allocator keeps the bytes from other streams until the work enqueued here is done.
Tensor scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

// `check` is for the CPU: reading faults back would stop the device's queue; they give NaN in their rows.
Outputs kd_loss(const Tensor& student, const Tensor& teacher, const OptionalTensor& labels, double temperature,
                double soft_weight, double hard_weight, const OptionalTensor& temperatures,
                const OptionalTensor& soft_weights, const OptionalTensor& hard_weights, const OptionalTensor& mask,
                const OptionalTensor& teacher_indices, int64_t dim, int64_t divergence, double beta,
                double label_smoothing, int64_t ignore_index, int64_t reduction, int64_t tail, bool terms,
                bool student_gradient, bool teacher_gradient, bool /*check*/) {
  if (!student.is_cuda()) refuse("student is on another device than the other tensors");
  const DeviceGuard guard(student);
  kdengine::Call call = kdengine::prepare({student, teacher, labels, temperature, soft_weight, hard_weight, temperatures,
                                           soft_weights, hard_weights, mask, teacher_indices, dim, divergence, beta,
                                           label_smoothing, ignore_index, reduction, tail, terms, student_gradient,
                                           teacher_gradient});
  const Tensor bytes = scratch(student, kdengine::cuda::scratch_bytes(call.problem));
  refuse_error(kdengine::cuda::kd_loss(call.problem, bytes.mutable_data_ptr(), guard.stream()));
  return std::move(call.outputs);
}

// Multiplies a gradient of kd_loss in place by the factor that arrives in backward: one for all rows, or one per row.
void scale(Tensor gradient, const Tensor& factor, int64_t dim) {
  if (!gradient.is_cuda() || !factor.is_cuda()) refuse("scale needs tensors on a CUDA device");
  const DeviceGuard guard(gradient);
  const kdengine::Scaling scaling = kdengine::prepare_scaling(gradient, factor, dim);
  refuse_error(kdengine::cuda::scale(scaling.rows, scaling.gradient, scaling.factor, guard.stream()));
}

std::string cuda_architectures() { return kdengine::cuda::architectures(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(kdengine, library) {
  library.def("scale(Tensor(a!) gradient, Tensor factor, int dim) -> ()");
  library.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(kdengine, CUDA, library) {
  library.impl("kd_loss", TORCH_BOX(&kd_loss));
  library.impl("scale", TORCH_BOX(&scale));
}

STABLE_TORCH_LIBRARY_IMPL(kdengine, CompositeExplicitAutograd, library) {
  library.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
}
