#include "general_launch.cuh"

namespace kdengine::cuda {

cudaError_t generalize_f64(const Problem& problem, const Launch& launch, Scratch* scratch) {
  return generalize<double>(problem, launch, scratch);
}

}  // namespace kdengine::cuda
