#include "streamed_launch.cuh"

namespace kdengine::cuda {

cudaError_t stream_f32(const Problem& problem, const Launch& launch, Scratch* scratch) {
  return stream<float>(problem, launch, scratch);
}

}  // namespace kdengine::cuda
