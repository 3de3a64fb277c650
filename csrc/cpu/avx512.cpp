// The kernels for AVX-512 (F, BW, VL and DQ).
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

#include "vec_avx512.h"

#include "kernels.inc.h"

namespace kdengine::cpu {

const Kernels& avx512_kernels() {
  static const Kernels kernels = {"avx512", process_rows, process_lanes, process_chunk_sums, process_chunk_gradient};
  return kernels;
}

}  // namespace kdengine::cpu
