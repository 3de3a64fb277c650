// What the Python tests call.
#include <vector>

#include "../../../csrc/cuda/cuda.h"
#include "../../../csrc/cuda/plan.h"
#include "device.h"

using kdengine::Matrix;
using kdengine::PerRow;
using kdengine::Problem;

extern "C" {

int problem_size() { return sizeof(Problem); }

emulation::Device* emulated_device() { return &emulation::device; }

int emulated_kd_loss(const Problem* problem) {
  std::vector<double> scratch(kdengine::cuda::scratch_bytes(*problem) / sizeof(double) + 1, -1.0);
  return kdengine::cuda::kd_loss(*problem, scratch.data(), nullptr);
}

int emulated_scale(const Problem* problem, const Matrix* gradient, const PerRow* factor) {
  return kdengine::cuda::scale(*problem, *gradient, *factor, nullptr);
}

void plan_of(const Problem* problem, int* out) {
  const emulation::Device& device = emulation::device;
  const kdengine::cuda::Limits limits{device.capability, device.processors, device.shared_per_block,
                                      device.shared_per_processor};
  const kdengine::cuda::Plan plan = kdengine::cuda::plan(*problem, limits);
  const int found[] = {static_cast<int>(plan.path), plan.width, plan.team,  plan.cluster, plan.tiles,
                       plan.kept,                   plan.threads, plan.shared, plan.counted};
  for (int i = 0; i < 9; ++i) out[i] = found[i];
}

}  // extern "C"
