#include "streamed_launch.cuh"

namespace kdengine::cuda {

cudaError_t stream_f16(const Problem& problem, const Launch& launch, Scratch* scratch) {
  return stream<Half>(problem, launch, scratch);
}

}  // namespace kdengine::cuda
