// The operators of the CPU library: their schemas, and kd_loss on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "arguments.h"
#include "check.h"
#include "cpu/cpu.h"

namespace {

using kdengine::Outputs;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

void run_parallel(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

void refuse_faults(uint32_t faults) {
  using namespace kdengine;
  if (faults & kTemperatureNotPositive) refuse("temperature must be greater than 0 in every row that takes part");
  if (faults & kLabelOutside) refuse("a label is neither a class of student nor ignore_index");
  if (faults & kIndexOutside) refuse("an entry of teacher_indices is no class of student");
  if (faults & kTooMuchMass) refuse("tail 0 (bin) needs log-probabilities: those of a row sum to more than 1");
}

Outputs kd_loss(const Tensor& student, const Tensor& teacher, const OptionalTensor& labels, double temperature,
                double soft_weight, double hard_weight, const OptionalTensor& temperatures,
                const OptionalTensor& soft_weights, const OptionalTensor& hard_weights, const OptionalTensor& mask,
                const OptionalTensor& teacher_indices, int64_t dim, int64_t divergence, double beta,
                double label_smoothing, int64_t ignore_index, int64_t reduction, int64_t tail, bool terms,
                bool student_gradient, bool teacher_gradient, bool check) {
  if (kdengine::cpu::instruction_set() == nullptr) kdengine::refuse(kdengine::cpu::refusal());
  kdengine::Call call = kdengine::prepare({student, teacher, labels, temperature, soft_weight, hard_weight, temperatures,
                                           soft_weights, hard_weights, mask, teacher_indices, dim, divergence, beta,
                                           label_smoothing, ignore_index, reduction, tail, terms,
                                           student_gradient, teacher_gradient});
  const kdengine::cpu::Parallel parallel{run_parallel, static_cast<int>(torch::stable::get_num_threads())};
  const uint32_t faults = kdengine::cpu::kd_loss(call.problem, parallel);
  if (check && faults != kdengine::kNoFault) refuse_faults(faults);
  return std::move(call.outputs);
}

std::string cpu_isa() {
  const char* name = kdengine::cpu::instruction_set();
  if (name == nullptr) kdengine::refuse(kdengine::cpu::refusal());
  return name;
}

}  // namespace

STABLE_TORCH_LIBRARY(kdengine, library) {
  library.def(
      "kd_loss(Tensor student, Tensor teacher, Tensor? labels=None, float temperature=1.0, float soft_weight=1.0, "
      "float hard_weight=0.0, Tensor? temperatures=None, Tensor? soft_weights=None, Tensor? hard_weights=None, "
      "Tensor? mask=None, Tensor? teacher_indices=None, int dim=-1, int divergence=0, float beta=0.5, "
      "float label_smoothing=0.0, int ignore_index=-100, int reduction=2, int tail=0, bool terms=False, "
      "bool student_gradient=True, bool teacher_gradient=False, bool check=True) "
      "-> (Tensor loss, Tensor soft, Tensor hard, Tensor student_gradient, Tensor teacher_gradient)");
  library.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(kdengine, CPU, library) { library.impl("kd_loss", TORCH_BOX(&kd_loss)); }

STABLE_TORCH_LIBRARY_IMPL(kdengine, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
