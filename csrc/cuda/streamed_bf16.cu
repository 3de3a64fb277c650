#include "streamed_launch.cuh"

namespace kdengine::cuda {

cudaError_t stream_bf16(const Problem& problem, const Launch& launch, Scratch* scratch) {
  return stream<BFloat16>(problem, launch, scratch);
}

}  // namespace kdengine::cuda
