// The CPU implementation of one call.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace kdengine::cpu {

// How to spread work over threads: calls body(begin, end, context) on disjoint ranges that cover begin .. end - 1.
struct Parallel {
  void (*run)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int threads;
};

// Computes everything that `problem` asks for and returns the faults found (see Fault). The result does not depend
// on the number of threads, bit for bit. Throws nothing; allocates scratch per thread.
uint32_t kd_loss(const Problem& problem, const Parallel& parallel);

// The instruction set in use: "avx512", "avx2" or "portable": the best that the processor has, or what the
// environment variable KDENGINE_CPU_ISA names, read once. A name that is unknown or that the processor does not have
// gives null, and `refusal` then says why.
const char* instruction_set();
const char* refusal();

}  // namespace kdengine::cpu
