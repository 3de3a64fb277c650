// Which kernel computes a call, and on how many threads: host code, decided from numbers alone.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace kdengine::cuda {

// What matters of a device.
struct Limits {
  int capability;            // 90 for sm_90
  int processors;
  int shared_per_block;      // bytes, opted in
  int shared_per_processor;
};

enum class Path { few, warp, block, kept, cluster, general };

struct Plan {
  Path path;
  int width = 0;            // lanes per row (Path::few)
  int threads = 0;          // per block; in Path::general also what a team is: 1, a warp or the block
  int team = 0;
  int cluster = 1;          // blocks per row
  int tiles = 1;            // per block and row
  int kept = 0;             // of these, in shared memory
  int64_t work = 1;         // blocks that would have something to do
  int shared = 0;           // bytes per block
  bool counted = false;     // rows are counted by a kernel ahead
};

constexpr int64_t kMostBlocks = 8192;
constexpr int64_t kCountedAhead = 8192;  // rows, above which counting them in every block costs more

Plan plan(const Problem& problem, const Limits& limits);

// A plan for at most `cluster` blocks per row, where the device has no room for the cluster of the first.
Plan plan(const Problem& problem, const Limits& limits, int cluster);

}  // namespace kdengine::cuda
