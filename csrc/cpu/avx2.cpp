// The kernels for AVX2, FMA and F16C.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "kernels.h"

#pragma GCC target("avx2,fma,f16c")

#include "vec_avx2.h"

#include "kernels.inc.h"

namespace kdengine::cpu {

const Kernels& avx2_kernels() {
  static const Kernels kernels = {"avx2", process_rows, process_lanes, process_chunk_sums, process_chunk_gradient};
  return kernels;
}

}  // namespace kdengine::cpu
