#include "plan.h"

#include <algorithm>

#include "shapes.h"

namespace kdengine::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int element_size(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

int64_t rows_of(const Problem& problem) { return problem.outer * problem.inner; }

bool same_layout(const Matrix& one, const Matrix& other) {
  return one.dtype == other.dtype && one.classes == other.classes && other.step == 1;
}

// The fast paths: forward KL and cross-entropy on class ids, of contiguous rows in one dtype.
bool streams(const Problem& problem) {
  const Matrix& s = problem.student;
  if (problem.wide || s.dtype == Dtype::f64 || s.step != 1 || s.classes >= 1 << 30) return false;
  if (problem.soft && (problem.divergence != Divergence::forward_kl || !same_layout(s, problem.teacher))) return false;
  if (problem.indices || problem.teacher_gradient.data) return false;
  if (problem.hard && (!problem.labels || problem.smoothing != 0)) return false;
  return !problem.student_gradient.data || same_layout(s, problem.student_gradient);
}

bool counts_ahead(const Problem& problem) {
  if (problem.reduction != Reduction::mean) return false;
  if (problem.hard && !problem.labels) return true;
  return (problem.mask || problem.labels) && rows_of(problem) > kCountedAhead;
}

Plan few(const Problem& problem) {
  Plan plan{Path::few};
  const int64_t classes = problem.student.classes;
  plan.width = classes <= 4 ? 1 : classes <= 16 ? 4 : 16;
  plan.threads = kFewThreads;
  plan.work = ceil_div(rows_of(problem) * plan.width, plan.threads);
  plan.shared = kTotalsBytes;
  return plan;
}

Plan resident(const Problem& problem, int64_t span) {
  const bool warp = span <= 32 * kTileElements;
  Plan plan{warp ? Path::warp : Path::block};
  plan.threads = warp ? kFewThreads : static_cast<int>(ceil_div(span, 32 * kTileElements) * 32);
  plan.work = warp ? ceil_div(rows_of(problem), kFewThreads / 32) : rows_of(problem);
  plan.shared = kHeadBytes;
  return plan;
}

// Tiles that a block keeps in `shared` bytes.
int64_t room(int64_t shared, bool hard) {
  int64_t kept = 0;
  while (streamed_bytes(kept + 1, kMostThreads, hard) <= shared) ++kept;
  return kept;
}

// The smallest cluster whose blocks keep their part of the row while two of them fit a processor; else the smallest
// whose blocks keep it at all; else the largest, which reads a part of the row twice.
int cluster_for(int64_t tiles, const Problem& problem, const Limits& limits, int most) {
  const int64_t half = std::min(limits.shared_per_block, limits.shared_per_processor / 2 - 1024);
  for (int cluster = 1; cluster <= std::min(most, kPortableCluster); cluster *= 2) {
    if (ceil_div(tiles, cluster) <= room(half, problem.hard)) return cluster;
  }
  for (int cluster = 1; cluster <= most; cluster *= 2) {
    if (ceil_div(tiles, cluster) <= room(limits.shared_per_block, problem.hard)) return cluster;
  }
  return most;
}

Plan streamed(const Problem& problem, const Limits& limits, int64_t span, int most) {
  const int64_t tiles = ceil_div(span, int64_t(kMostThreads) * kTileElements);
  Plan plan{Path::kept};
  plan.cluster = cluster_for(tiles, problem, limits, most);
  if (plan.cluster > 1) plan.path = Path::cluster;
  plan.threads = kMostThreads;
  plan.tiles = static_cast<int>(ceil_div(tiles, plan.cluster));
  if (problem.student_gradient.data) {
    plan.kept = static_cast<int>(std::min<int64_t>(plan.tiles, room(limits.shared_per_block, problem.hard)));
  }
  plan.work = rows_of(problem) * plan.cluster;
  plan.shared = static_cast<int>(streamed_bytes(plan.kept, plan.threads, problem.hard));
  return plan;
}

// Lanes side by side read addresses side by side: along the classes, or along the rows where those lie closer.
int general_team(const Problem& problem) {
  const int64_t classes = problem.student.classes;
  if (problem.indices) return kGeneralThreads;
  if (classes <= 32 || (problem.student.step != 1 && rows_of(problem) >= 4096)) return 1;
  return classes <= 2048 ? 32 : kGeneralThreads;
}

Plan general(const Problem& problem) {
  Plan plan{Path::general};
  plan.team = general_team(problem);
  plan.threads = plan.team == kGeneralThreads ? kGeneralThreads : kFewThreads;
  plan.work = ceil_div(rows_of(problem) * plan.team, plan.threads);
  const int64_t bits = problem.indices ? std::min<int64_t>(ceil_div(problem.student.classes, 32) * 32, kWindow) : 0;
  plan.shared = kTotalsBytes + kTeamBytes + static_cast<int>(bits / 8);
  return plan;
}

int largest_cluster(const Limits& limits) {
  if (limits.capability < 90) return 1;
  return limits.capability / 10 == 12 ? kPortableCluster : kMostCluster;
}

}  // namespace

Plan plan(const Problem& problem, const Limits& limits, int cluster) {
  Plan found = general(problem);
  if (streams(problem)) {
    const int width = 16 / element_size(problem.student.dtype);
    const int64_t span = ceil_div(problem.student.classes + width - 1, width) * width;  // wherever rows start
    if (problem.student.classes <= 64) {
      found = few(problem);
    } else if (span <= kMostThreads * kTileElements) {
      found = resident(problem, span);
    } else {
      found = streamed(problem, limits, span, cluster);
    }
  }
  found.counted = counts_ahead(problem);
  found.work = std::clamp<int64_t>(found.work, found.cluster, kMostBlocks);
  return found;
}

Plan plan(const Problem& problem, const Limits& limits) { return plan(problem, limits, largest_cluster(limits)); }

}  // namespace kdengine::cuda
