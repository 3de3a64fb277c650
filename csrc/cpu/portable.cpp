// The kernels in portable C++, and float64's, which are these on every processor.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "kernels.h"

#include "vec_portable.h"

#include "kernels.inc.h"

namespace kdengine::cpu {

const Kernels& portable_kernels() {
  static const Kernels kernels = {"portable", process_rows, process_lanes, process_chunk_sums,
                                  process_chunk_gradient};
  return kernels;
}

void wide_rows(const Job& job, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    RowTerms terms;
    const uint32_t fault = row_terms(job, r, terms);
    if (fault != kNoFault) {
      fail(job, r, fault);
    } else if (!terms.soft && !terms.hard) {
      job.values[2 * r] = job.values[2 * r + 1] = 0;
      fill_gradients(*job.problem, r, 0);
    } else {
      general_row<VecOf<double>>(job, r, terms);
    }
  }
}

}  // namespace kdengine::cpu
