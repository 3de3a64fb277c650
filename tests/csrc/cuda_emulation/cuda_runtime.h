// Enough of CUDA to run the kernels of csrc/cuda on a CPU: every thread is a fiber, blocks of a grid run one after the
// other in a shuffled order, blocks of a cluster side by side. It executes the kernels' logic, with its synchronization;
// it says nothing about a GPU's memory model, its timing or its exact arithmetic.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

unsigned char* shared_memory();
unsigned char* shared_memory_of(int rank);
int cluster_rank();
int cluster_size();
void cluster_sync();
void block_sync();
void warp_sync();

// Gives `value` (at most 8 bytes) to the warp and returns lane `from`'s.
uint64_t exchange(uint64_t value, int from);

template <class T>
const T* map_shared_rank(const T* own, int rank) {
  return reinterpret_cast<const T*>(shared_memory_of(rank) +
                                    (reinterpret_cast<const unsigned char*>(own) - shared_memory()));
}

// As inexact as the instruction is documented to be, denormals flushed; the same x gives the same result.
float fast_exp2(float x);
float half_to_float(uint16_t bits);
uint16_t round_to_half(float x);
uint16_t round_to_bf16(float x);

struct Grid {
  unsigned blocks, threads, cluster;
  size_t shared;
};
int run(const Grid& grid, const std::function<void()>& kernel);

}  // namespace emulation

inline void __syncthreads() { emulation::block_sync(); }
inline void __syncwarp() { emulation::warp_sync(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  static_assert(sizeof(T) <= 8, "one word");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof value);
  word = emulation::exchange(word, static_cast<int>(threadIdx.x % 32) ^ distance);
  memcpy(&value, &word, sizeof value);
  return value;
}

inline int __any_sync(unsigned, int condition) {
  int any = condition != 0;
  for (int distance = 16; distance > 0; distance /= 2) any |= __shfl_xor_sync(~0u, any, distance);
  return any;
}

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
inline unsigned atomicOr(unsigned* to, unsigned value) {
  const unsigned before = *to;
  *to |= value;
  return before;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, const T& value) {
  *to = value;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The host's side.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchOutOfResources = 701 };
using cudaStream_t = void*;

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device);
cudaError_t emulated_occupancy(int* blocks, size_t shared);
cudaError_t emulated_clusters(int* clusters, const cudaLaunchConfig_t* config);

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t shared) {
  return emulated_occupancy(blocks, shared);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*, const cudaLaunchConfig_t* config) {
  return emulated_clusters(clusters, config);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  const emulation::Grid grid{config->gridDim.x, config->blockDim.x, cluster, config->dynamicSmemBytes};
  return static_cast<cudaError_t>(emulation::run(grid, [&] { kernel(arguments...); }));
}
