// The CUDA implementation of one call.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace kdengine::cuda {

// Bytes of device scratch that a call needs (row values and the ticket of the last block).
int64_t scratch_bytes(const Problem& problem);

// Enqueues one call on `stream` of the current device: every pointer in `problem` is a device pointer. Rows with a
// fault get NaN. Returns a cudaError_t as int: 0 is success. No host synchronization; safe to capture in a graph.
int kd_loss(const Problem& problem, void* scratch, void* stream);

// Multiplies a gradient in place by a factor that lies on the device (float32 or float64, one value or one per row);
// returns early on the device where the factor is exactly 1.
int scale(const Problem& problem, const Matrix& gradient, const PerRow& factor, void* stream);

// Compute capabilities that this library holds machine code for, such as "80 86 89 90".
const char* architectures();

}  // namespace kdengine::cuda
