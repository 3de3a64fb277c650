// Multiplies a gradient by what arrives from behind the loss: nearly always exactly 1, and then nothing is touched.
#include <algorithm>

#include "cuda.h"
#include "task.cuh"

namespace kdengine::cuda {
namespace {

constexpr int kScaleThreads = 256;

template <class Element>
KD_DEVICE void scale_vector(Element* at, double factor) {
  Vector<Element> vector = load_vector(at);
#pragma unroll
  for (int k = 0; k < Vector<Element>::width; ++k) {
    vector.at[k] = narrow<Element>(widen(vector.at[k]) * static_cast<decltype(widen(vector.at[k]))>(factor));
  }
  *reinterpret_cast<Vector<Element>*>(at) = vector;
}

// A gradient without gaps, by one factor.
template <class Element>
__global__ void __launch_bounds__(kScaleThreads) scale_dense(Element* data, int64_t count, const PerRow factor) {
  const double by = value_of(factor, 0);
  if (by == 1) return;
  constexpr int width = Vector<Element>::width;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  const int64_t vectors = count / width;
  for (int64_t i = thread; i < vectors; i += threads) scale_vector(data + i * width, by);
  for (int64_t i = vectors * width + thread; i < count; i += threads) {
    data[i] = narrow<Element>(widen(data[i]) * static_cast<decltype(widen(data[i]))>(by));
  }
}

KD_DEVICE void scale_one(const Matrix& gradient, int64_t at, double by) {
  if (gradient.dtype == Dtype::f64) {
    static_cast<double*>(gradient.data)[at] *= by;
  } else {
    store(gradient.data, gradient.dtype, at, load<float>(gradient.data, gradient.dtype, at) * static_cast<float>(by));
  }
}

// Any strides and one factor per row; `across`: rows lie side by side, so threads walk along them.
__global__ void __launch_bounds__(kScaleThreads)
    scale_rows(const Matrix gradient, int64_t outer, int64_t inner, const PerRow factor, bool across) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  const int64_t rows = outer * inner, lanes = across ? 1 : kWarp;
  for (int64_t row = thread / lanes; row < rows; row += threads / lanes) {
    const double by = value_of(factor, row);
    if (by == 1) continue;
    const int64_t start = row_offset(gradient, row, inner);
    for (int64_t j = thread % lanes; j < gradient.classes; j += lanes) {
      scale_one(gradient, start + j * gradient.step, by);
    }
  }
}

bool dense(const Problem& problem, const Matrix& gradient) {
  const bool rows = problem.inner == 1 && gradient.step == 1 && gradient.outer == gradient.classes;
  const bool planes = gradient.inner == 1 && gradient.step == problem.inner &&
                      gradient.outer == gradient.classes * problem.inner;
  return (rows || planes) && reinterpret_cast<uintptr_t>(gradient.data) % 16 == 0;
}

template <class Element>
cudaError_t launch_dense(const Matrix& gradient, int64_t count, const PerRow& factor, unsigned blocks,
                         cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kScaleThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, scale_dense<Element>, static_cast<Element*>(gradient.data), count, factor);
}

cudaError_t launch_rows(const Problem& problem, const Matrix& gradient, const PerRow& factor, unsigned blocks,
                        cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kScaleThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, scale_rows, gradient, problem.outer, problem.inner, factor, gradient.step != 1);
}

}  // namespace

int scale(const Problem& problem, const Matrix& gradient, const PerRow& factor, void* stream) {
  const int64_t count = problem.outer * problem.inner * gradient.classes;
  if (count == 0) return cudaSuccess;
  const int64_t share = 64 * kScaleThreads;  // elements per block: few enough blocks that doing nothing is quick
  const unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>((count + share - 1) / share, 1, 1024));
  const auto on = static_cast<cudaStream_t>(stream);
  if (factor.stride != 0 || !dense(problem, gradient)) return launch_rows(problem, gradient, factor, blocks, on);
  switch (gradient.dtype) {
    case Dtype::f16: return launch_dense<Half>(gradient, count, factor, blocks, on);
    case Dtype::bf16: return launch_dense<BFloat16>(gradient, count, factor, blocks, on);
    case Dtype::f32: return launch_dense<float>(gradient, count, factor, blocks, on);
    default: return launch_dense<double>(gradient, count, factor, blocks, on);
  }
}

}  // namespace kdengine::cuda
