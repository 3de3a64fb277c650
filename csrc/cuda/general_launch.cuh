// The kernels of the general path for one accumulation type.
#pragma once

#include "general.cuh"
#include "launch.cuh"

namespace kdengine::cuda {
namespace {

template <class Real, class Team>
__global__ void __launch_bounds__(kGeneralThreads)
    general_kernel(const __grid_constant__ Problem problem, bool counted, Scratch* scratch) {
  run_general<Real, Team>(problem, counted, scratch);
}

template <class Real>
cudaError_t generalize(const Problem& problem, const Launch& launch, Scratch* scratch) {
  const Plan& plan = launch.plan;
  if (plan.team == 1) return launch(general_kernel<Real, ThreadTeam>, problem, plan.counted, scratch);
  if (plan.team == kWarp) return launch(general_kernel<Real, WarpTeam>, problem, plan.counted, scratch);
  return launch(general_kernel<Real, BlockTeam>, problem, plan.counted, scratch);
}

}  // namespace
}  // namespace kdengine::cuda
