#include "general_launch.cuh"

namespace kdengine::cuda {

cudaError_t generalize_f32(const Problem& problem, const Launch& launch, Scratch* scratch) {
  return generalize<float>(problem, launch, scratch);
}

}  // namespace kdengine::cuda
