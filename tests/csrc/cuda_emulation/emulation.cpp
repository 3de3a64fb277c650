// The emulated device: fibers, barriers, shared memory, and the arithmetic of its conversions.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "device.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Device device;

namespace {

constexpr size_t kStack = 64 * 1024;

struct Barrier {
  unsigned expected = 0, arrived = 0, phase = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t words[2][32];
};

struct Block {
  unsigned index, rank;
  Barrier barrier;
  Barrier* cluster;
  std::vector<Block>* peers;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* shared;
};

struct Fiber {
  ucontext_t context;
  Block* block;
  unsigned thread;
  int turn = 0;  // which of the warp's word buffers the next exchange uses
  const Barrier* waits = nullptr;
  unsigned phase = 0;
  bool done = false;
};

ucontext_t scheduler;
Fiber* current = nullptr;
const std::function<void()>* body = nullptr;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %u, thread %u)\n", what, current->block->index, current->thread);
  std::abort();
}

void wait(Barrier& barrier) {
  const unsigned phase = barrier.phase;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.phase;
    return;
  }
  current->waits = &barrier;
  current->phase = phase;
  Fiber* self = current;
  swapcontext(&self->context, &scheduler);
}

void enter() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

char* stacks(size_t count) {
  static char* memory = nullptr;
  static size_t held = 0;
  if (count > held) {
    if (memory) munmap(memory, held * kStack);
    memory = static_cast<char*>(
        mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) std::abort();
    held = count;
  }
  return memory;
}

void prepare(Block& block, unsigned index, unsigned rank, const Grid& grid) {
  block.index = index;
  block.rank = rank;
  block.barrier.expected = grid.threads;
  block.warps.resize(grid.threads / 32);
  for (Warp& warp : block.warps) warp.barrier.expected = 32;
  block.memory.reset(new unsigned char[grid.shared + 16]);
  block.shared = block.memory.get() + (16 - reinterpret_cast<uintptr_t>(block.memory.get()) % 16) % 16;
  std::memset(block.shared, 0xff, grid.shared);  // NaN, so that a read ahead of its write shows
}

// Runs every fiber that can go on until all are done, each time in another order.
void schedule(std::vector<Fiber>& fibers, std::mt19937& random) {
  std::vector<Fiber*> alive;
  for (Fiber& fiber : fibers) alive.push_back(&fiber);
  while (!alive.empty()) {
    std::rotate(alive.begin(), alive.begin() + random() % alive.size(), alive.end());
    if (random() % 2) std::reverse(alive.begin(), alive.end());
    bool progress = false;
    for (Fiber* fiber : alive) {
      if (fiber->waits && fiber->waits->phase == fiber->phase) continue;
      fiber->waits = nullptr;
      progress = true;
      current = fiber;
      threadIdx.x = fiber->thread;
      blockIdx.x = fiber->block->index;
      swapcontext(&scheduler, &fiber->context);
    }
    if (!progress) fail("threads wait for each other at different barriers");
    alive.erase(std::remove_if(alive.begin(), alive.end(), [](Fiber* f) { return f->done; }), alive.end());
  }
}

void run_cluster(unsigned first, const Grid& grid, std::mt19937& random) {
  std::vector<Block> blocks(grid.cluster);
  Barrier barrier;
  barrier.expected = grid.cluster * grid.threads;
  std::vector<Fiber> fibers(grid.cluster * grid.threads);
  char* stack = stacks(fibers.size());
  for (unsigned rank = 0; rank < grid.cluster; ++rank) {
    prepare(blocks[rank], first + rank, rank, grid);
    blocks[rank].cluster = &barrier;
    blocks[rank].peers = &blocks;
  }
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.block = &blocks[i / grid.threads];
    fiber.thread = i % grid.threads;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack + i * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  schedule(fibers, random);
}

}  // namespace

unsigned char* shared_memory() { return current->block->shared; }
unsigned char* shared_memory_of(int rank) { return current->block->peers->at(rank).shared; }
int cluster_rank() { return current->block->rank; }
int cluster_size() { return current->block->peers->size(); }
void cluster_sync() { wait(*current->block->cluster); }
void block_sync() { wait(current->block->barrier); }
void warp_sync() { wait(current->block->warps[current->thread / 32].barrier); }

uint64_t exchange(uint64_t value, int from) {
  Warp& warp = current->block->warps[current->thread / 32];
  uint64_t* words = warp.words[current->turn ^= 1];
  words[current->thread % 32] = value;
  wait(warp.barrier);
  return words[from];
}

int run(const Grid& grid, const std::function<void()>& kernel) {
  if (grid.shared > size_t(device.shared_per_block) || grid.threads % 32 != 0 || grid.blocks % grid.cluster != 0) {
    return cudaErrorInvalidValue;
  }
  std::mt19937 random(device.seed);
  std::vector<unsigned> order(grid.blocks / grid.cluster);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i * grid.cluster;
  std::shuffle(order.begin(), order.end(), random);
  blockDim = dim3(grid.threads);
  gridDim = dim3(grid.blocks);
  body = &kernel;
  for (unsigned first : order) run_cluster(first, grid, random);
  device.blocks = grid.blocks;
  device.launches += 1;
  return cudaSuccess;
}

float fast_exp2(float x) {
  const float y = exp2f(x);
  if (!(y >= 1.17549435e-38f)) return y != y ? y : 0.0f;
  if (x == 0 || isinf(y)) return y;
  const uint32_t hash = __float_as_uint(x) * 2654435761u;
  return y * (1 + 1.9e-7f * (static_cast<float>(hash >> 8) / 8388608.0f - 1));
}

float half_to_float(uint16_t bits) {
  const int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x;
  if (exponent == 31) {
    x = fraction ? NAN : INFINITY;
  } else {
    x = exponent ? ldexpf(1024.0f + fraction, exponent - 25) : ldexpf(fraction, -24);
  }
  return sign ? -x : x;
}

uint16_t round_to_half(float x) {
  const uint16_t sign = __float_as_uint(x) >> 31 << 15;
  if (x != x) return 0x7fff;
  const float size = fabsf(x);
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  frexpf(size, &exponent);
  const float step = ldexpf(1.0f, std::max(exponent - 11, -24));
  const float rounded = nearbyintf(size / step) * step;
  if (rounded < ldexpf(1, -14)) return sign | static_cast<uint16_t>(rounded * 16777216.0f);
  frexpf(rounded, &exponent);
  const int fraction = static_cast<int>(ldexpf(rounded, 11 - exponent)) & 1023;
  return sign | static_cast<uint16_t>((exponent + 14) << 10 | fraction);
}

uint16_t round_to_bf16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = __float_as_uint(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulation

cudaError_t cudaGetDevice(int* number) {
  *number = 1 << 20;  // beyond what is remembered, so that every call asks again
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  const emulation::Device& device = emulation::device;
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor: *value = device.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = device.capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = device.processors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = device.shared_per_block; break;
    default: *value = device.shared_per_processor;
  }
  return cudaSuccess;
}

cudaError_t emulated_occupancy(int* blocks, size_t shared) {
  *blocks = static_cast<int>(emulation::device.shared_per_processor / (shared + 1024));
  return cudaSuccess;
}

cudaError_t emulated_clusters(int* clusters, const cudaLaunchConfig_t* config) {
  const int size = config->attrs[0].val.clusterDim.x;
  *clusters = size > emulation::device.largest_cluster ? 0 : emulation::device.processors / size;
  return cudaSuccess;
}
