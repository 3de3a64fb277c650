// Which rows take part in which term, and with what.
#include "kernels.h"

namespace kdengine::cpu {
namespace {

double value_at(const PerRow& x, int64_t r) {
  if (x.values == nullptr) return x.number;
  const int64_t i = r * x.stride;
  return x.dtype == Dtype::f64 ? ((const double*)x.values)[i] : (double)((const float*)x.values)[i];
}

bool is_zero(const char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return *(const double*)p == 0;
    case Dtype::f32: return *(const float*)p == 0;
    default: return (*(const uint16_t*)p & 0x7fff) == 0;
  }
}

bool has_probabilities(const Problem& p, int64_t r) {
  const Matrix& m = p.probabilities;
  const int64_t size = size_of(m.dtype);
  const char* x = (const char*)m.data + (r / p.inner * m.outer + r % p.inner * m.inner) * size;
  for (int64_t c = 0; c < m.classes; ++c, x += m.step * size) {
    if (!is_zero(x, m.dtype)) return true;
  }
  return false;
}

bool in_mask(const Problem& p, int64_t r) { return p.mask == nullptr || p.mask[r]; }

bool labelled(const Problem& p, int64_t r) {
  return p.labels != nullptr ? p.labels[r] != p.ignore_index : has_probabilities(p, r);
}

// What lane j's label says, where nothing else differs between rows.
uint32_t put_label(const Job& job, int64_t r, LaneTerms& lanes, int j) {
  const Problem& p = *job.problem;
  const int64_t label = p.labels[r];
  const bool hard = label != p.ignore_index && p.hard_weight.number != 0;
  lanes.hard[j] = hard;
  lanes.label[j] = hard ? (float)label : -1;
  lanes.hard_scale[j] = hard ? (float)(p.hard_weight.number / (double)job.hard_rows) : 0;
  return hard && (label < 0 || label >= p.student.classes) ? kLabelOutside : kNoFault;
}

}  // namespace

int64_t count_rows(const Problem& p, int64_t rows, bool hard) {
  if (p.reduction != Reduction::mean) return 1;
  int64_t count = 0;
  if (!hard && p.mask == nullptr) {
    count = rows;
  } else {
    for (int64_t r = 0; r < rows; ++r) count += in_mask(p, r) && (!hard || labelled(p, r));
  }
  return count > 1 ? count : 1;
}

uint32_t row_terms(const Job& job, int64_t r, RowTerms& terms) {
  const Problem& p = *job.problem;
  terms = {false, false, 1, 0, 0, -1};
  if (!in_mask(p, r)) return kNoFault;
  uint32_t fault = kNoFault;
  const double soft_weight = p.soft ? value_at(p.soft_weight, r) : 0;
  if (soft_weight != 0) {
    terms.soft = true;
    terms.temperature = value_at(p.temperature, r);
    if (!(terms.temperature > 0)) fault |= kTemperatureNotPositive;
    terms.soft_scale = soft_weight / (double)job.soft_rows;
  }
  const double hard_weight = p.hard ? value_at(p.hard_weight, r) : 0;
  if (hard_weight != 0 && labelled(p, r)) {
    terms.hard = true;
    if (p.labels != nullptr) {
      terms.label = p.labels[r];
      if (terms.label < 0 || terms.label >= p.student.classes) fault |= kLabelOutside;
    }
    terms.hard_scale = hard_weight / (double)job.hard_rows;
  }
  return fault;
}

uint32_t lane_terms(const Job& job, int64_t first, int count, LaneTerms& lanes) {
  const Problem& p = *job.problem;
  // Where all rows have the same terms but for labels, only those are read again for every full group.
  const bool same = p.mask == nullptr && p.temperature.values == nullptr && p.soft_weight.values == nullptr &&
                    p.hard_weight.values == nullptr && count == kLanes;
  if (same && lanes.filled && !p.hard) return lanes.faults;
  uint32_t faults = kNoFault;
  if (same && lanes.filled) {
    for (int j = 0; j < kLanes; ++j) faults |= put_label(job, first + j, lanes, j);
    return faults | lanes.faults;
  }
  lanes.faults = kNoFault;
  for (int j = 0; j < kLanes; ++j) {
    RowTerms terms = {false, false, 1, 0, 0, -1};
    if (j < count) faults |= row_terms(job, first + j, terms);
    lanes.soft[j] = terms.soft;
    lanes.hard[j] = terms.hard;
    lanes.temperature[j] = (float)terms.temperature;
    lanes.soft_scale[j] = (float)terms.soft_scale;
    lanes.hard_scale[j] = (float)terms.hard_scale;
    lanes.label[j] = (float)terms.label;
  }
  lanes.filled = same;
  lanes.faults = faults & ~(uint32_t)kLabelOutside;
  return faults;
}

}  // namespace kdengine::cpu
