// Sizes that the plan and the kernels have to agree on.
#pragma once

#include <cstdint>

namespace kdengine::cuda {

constexpr int kTileElements = 8;   // of each input, per thread and tile
constexpr int kMostThreads = 512;  // of a streamed block
constexpr int kFewThreads = 128;   // of blocks that hold a row per warp or less
constexpr int kGeneralThreads = 256;
constexpr int kReferenceBytes = 8;
constexpr int kHeadBytes = 2176;   // of the streamed path's shared memory
constexpr int kTotalsBytes = 512;
constexpr int kTeamBytes = 512;
constexpr int kWindow = 1 << 18;   // classes whose bits a block holds in shared memory
constexpr int kMostCluster = 16;
constexpr int kPortableCluster = 8;

// float32 terms of one thread's tile: d, b and, with cross-entropy, e.
constexpr int terms_bytes(bool hard) { return kTileElements * 4 * (hard ? 3 : 2); }

constexpr int references_bytes(int kept, int warps) { return (kept * warps * kReferenceBytes + 15) / 16 * 16; }

constexpr int64_t streamed_bytes(int64_t kept, int threads, bool hard) {
  return kHeadBytes + references_bytes(static_cast<int>(kept), threads / 32) + kept * threads * terms_bytes(hard);
}

}  // namespace kdengine::cuda
