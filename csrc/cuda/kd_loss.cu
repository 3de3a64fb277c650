// The entry points: one call from its plan to its launch.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <string>

#include "batch.cuh"
#include "cuda.h"
#include "launch.cuh"
#include "shapes.h"

namespace kdengine::cuda {
namespace {

constexpr int kCountThreads = 256;

KD_DEVICE bool labelled(const Problem& problem, int64_t row) {
  const Matrix& from = problem.probabilities;
  const int64_t start = row_offset(from, row, problem.inner);
  for (int64_t j = 0; j < from.classes; ++j) {
    if (load<float>(from.data, from.dtype, start + j * from.step) != 0) return true;
  }
  return false;
}

// Counts the rows of a mean; whole numbers, so the order of the additions does not matter.
__global__ void __launch_bounds__(kCountThreads)
    count_kernel(const __grid_constant__ Problem problem, Scratch* scratch) {
  Totals* shared = reinterpret_cast<Totals*>(shared_memory());
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  Totals own = count_rows(problem, first, step);
  const int64_t rows = problem.outer * problem.inner;
  for (int64_t row = first; problem.hard && !problem.labels && row < rows; row += step) {
    if (counts_soft(problem, row) && labelled(problem, row)) own.hard += 1;
  }
  const Totals all = block_sum(own, shared);
  if (threadIdx.x != 0) return;
  atomicAdd(&scratch->counted[0], static_cast<unsigned long long>(all.soft));
  atomicAdd(&scratch->counted[1], static_cast<unsigned long long>(all.hard));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, name, device) == cudaSuccess ? value : 0;
}

Limits read_limits(int device) {
  return {attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
              attribute(cudaDevAttrComputeCapabilityMinor, device),
          attribute(cudaDevAttrMultiProcessorCount, device), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
}

// Of the current device, asked for once per device.
cudaError_t current_limits(Limits* limits) {
  struct Known {
    std::atomic<bool> ready{false};
    Limits limits{};
  };
  static std::array<Known, 64> known;
  int device = 0;
  const cudaError_t failed = cudaGetDevice(&device);
  if (failed != cudaSuccess) return failed;
  if (device >= static_cast<int>(known.size())) {
    *limits = read_limits(device);
    return cudaSuccess;
  }
  if (!known[device].ready.load(std::memory_order_acquire)) {
    known[device].limits = read_limits(device);  // two threads would write the same
    known[device].ready.store(true, std::memory_order_release);
  }
  *limits = known[device].limits;
  return cudaSuccess;
}

cudaError_t dispatch(const Problem& problem, const Launch& launch, Scratch* scratch) {
  if (launch.plan.path == Path::general) {
    return problem.wide ? generalize_f64(problem, launch, scratch) : generalize_f32(problem, launch, scratch);
  }
  switch (problem.student.dtype) {
    case Dtype::f32: return stream_f32(problem, launch, scratch);
    case Dtype::bf16: return stream_bf16(problem, launch, scratch);
    default: return stream_f16(problem, launch, scratch);
  }
}

cudaError_t enqueue(const Problem& problem, Scratch* scratch, Stream stream) {
  Limits limits{};
  cudaError_t failed = current_limits(&limits);
  if (failed != cudaSuccess) return failed;
  Plan best = plan(problem, limits);
  failed = cudaMemsetAsync(scratch, 0, offsetof(Scratch, partial), stream);
  if (failed == cudaSuccess && best.counted) failed = count_ahead(problem, stream, scratch);
  if (failed != cudaSuccess) return failed;
  failed = dispatch(problem, Launch{best, stream, limits.processors}, scratch);
  while (failed == cudaErrorLaunchOutOfResources && best.cluster > 1) {  // a slice of a device may lack the room
    best = plan(problem, limits, best.cluster / 2);
    failed = dispatch(problem, Launch{best, stream, limits.processors}, scratch);
  }
  return failed;
}

}  // namespace

cudaError_t count_ahead(const Problem& problem, Stream stream, Scratch* scratch) {
  Plan counting{Path::general};
  counting.threads = kCountThreads;
  counting.shared = kTotalsBytes;
  counting.work = std::clamp<int64_t>((problem.outer * problem.inner + kCountThreads - 1) / kCountThreads, 1, 256);
  return Launch{counting, stream, 256}(count_kernel, problem, scratch);
}

int64_t scratch_bytes(const Problem&) { return sizeof(Scratch) + 2 * sizeof(double) * kMostBlocks; }

int kd_loss(const Problem& problem, void* scratch, void* stream) {
  if (problem.outer * problem.inner == 0 && problem.reduction == Reduction::none) return cudaSuccess;
  return enqueue(problem, static_cast<Scratch*>(scratch), static_cast<Stream>(stream));
}

const char* architectures() {
#ifdef __CUDA_ARCH_LIST__  // such as 800,900
  static const std::string names = [] {
    std::string text;
    for (int number : {__CUDA_ARCH_LIST__}) text += (text.empty() ? "" : " ") + std::to_string(number / 10);
    return text;
  }();
  return names.c_str();
#else
  return "";
#endif
}

}  // namespace kdengine::cuda
