// Launching a kernel of any path with the grid that fills the device once.
#pragma once

#include "plan.h"
#include "task.cuh"

namespace kdengine::cuda {

using Stream = cudaStream_t;

struct Launch {
  const Plan& plan;
  Stream stream;
  int processors;

  template <class... Parameters, class... Arguments>
  cudaError_t operator()(void (*kernel)(Parameters...), Arguments... arguments) const {
    if (plan.shared > 48 * 1024) {
      const cudaError_t failed =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared);
      if (failed != cudaSuccess) return failed;
    }
    cudaLaunchConfig_t config{};
    config.blockDim = dim3(plan.threads);
    config.dynamicSmemBytes = plan.shared;
    config.stream = stream;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = plan.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = plan.cluster > 1;
    unsigned blocks = 0;
    const cudaError_t failed = plan.cluster > 1 ? cluster_grid(kernel, config, &blocks) : grid(kernel, &blocks);
    if (failed != cudaSuccess) return failed;
    config.gridDim = dim3(blocks);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
  }

  template <class Kernel>
  cudaError_t grid(Kernel* kernel, unsigned* blocks) const {
    int fit = 1;
    if (plan.work > processors) {
      const cudaError_t failed = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, plan.threads, plan.shared);
      if (failed != cudaSuccess) return failed;
    }
    const int64_t most = int64_t(fit < 1 ? 1 : fit) * processors;
    *blocks = static_cast<unsigned>(plan.work < most ? plan.work : most);
    return cudaSuccess;
  }

  // cudaErrorLaunchOutOfResources where not a single cluster has room.
  template <class Kernel>
  cudaError_t cluster_grid(Kernel* kernel, cudaLaunchConfig_t& config, unsigned* blocks) const {
    if (plan.cluster > 8) {
      const cudaError_t failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (failed != cudaSuccess) return failed;
    }
    int fit = 0;
    config.gridDim = dim3(plan.cluster);
    const cudaError_t failed = cudaOccupancyMaxActiveClusters(&fit, kernel, &config);
    if (failed != cudaSuccess) return failed;
    if (fit < 1) return cudaErrorLaunchOutOfResources;
    const int64_t work = plan.work / plan.cluster, clusters = work < fit ? work : fit;
    *blocks = static_cast<unsigned>(clusters * plan.cluster);
    return cudaSuccess;
  }
};

// One translation unit each, so that they compile side by side.
cudaError_t stream_f32(const Problem& problem, const Launch& launch, Scratch* scratch);
cudaError_t stream_bf16(const Problem& problem, const Launch& launch, Scratch* scratch);
cudaError_t stream_f16(const Problem& problem, const Launch& launch, Scratch* scratch);
cudaError_t generalize_f32(const Problem& problem, const Launch& launch, Scratch* scratch);
cudaError_t generalize_f64(const Problem& problem, const Launch& launch, Scratch* scratch);
cudaError_t count_ahead(const Problem& problem, Stream stream, Scratch* scratch);

}  // namespace kdengine::cuda
