// The kernels of the streamed paths for one dtype, and the choice among them.
#pragma once

#include "few.cuh"
#include "launch.cuh"
#include "shapes.h"
#include "streamed.cuh"

namespace kdengine::cuda {
namespace {

template <class Element, int width, bool hard>
__global__ void __launch_bounds__(kFewThreads)
    few_kernel(const __grid_constant__ Problem problem, bool counted, Scratch* scratch) {
  run_few<Element, width, hard>(problem, counted, scratch);
}

// Two blocks to a processor, so that one computes while the other waits for memory.
template <class Element, Layout layout, bool resident, bool hard>
__global__ void __launch_bounds__(layout == Layout::warp ? kFewThreads : kMostThreads, layout == Layout::warp ? 5 : 2)
    streamed_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Schedule schedule,
                    Scratch* scratch) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  Streamed<Element, layout, resident, hard>(problem, schedule).run(scratch);
#else
  if (layout != Layout::cluster) Streamed<Element, layout, resident, hard>(problem, schedule).run(scratch);
#endif
}

template <class Element, bool hard>
cudaError_t stream(const Problem& problem, const Launch& launch, Scratch* scratch) {
  const Plan& plan = launch.plan;
  static_assert(sizeof(Head) == kHeadBytes, "the plan knows the size");
  static_assert(sizeof(Reference) == kReferenceBytes, "the plan knows the size");
  const int terms_at = kHeadBytes + references_bytes(plan.kept, plan.threads / kWarp);
  const Schedule schedule{plan.tiles, plan.kept, terms_at, plan.counted};
  switch (plan.path) {
    case Path::few:
      if (plan.width == 1) return launch(few_kernel<Element, 1, hard>, problem, plan.counted, scratch);
      if (plan.width == 4) return launch(few_kernel<Element, 4, hard>, problem, plan.counted, scratch);
      return launch(few_kernel<Element, 16, hard>, problem, plan.counted, scratch);
    case Path::warp:
      return launch(streamed_kernel<Element, Layout::warp, true, hard>, problem, schedule, scratch);
    case Path::block:
      return launch(streamed_kernel<Element, Layout::block, true, hard>, problem, schedule, scratch);
    case Path::kept:
      return launch(streamed_kernel<Element, Layout::block, false, hard>, problem, schedule, scratch);
    default:
      return launch(streamed_kernel<Element, Layout::cluster, false, hard>, problem, schedule, scratch);
  }
}

template <class Element>
cudaError_t stream(const Problem& problem, const Launch& launch, Scratch* scratch) {
  if (problem.hard) return stream<Element, true>(problem, launch, scratch);
  return stream<Element, false>(problem, launch, scratch);
}

}  // namespace
}  // namespace kdengine::cuda
