// What the kernels use of CUDA, named once: everything else in this folder is plain C++. The tests' emulation puts its
// own <cuda_runtime.h> in front and runs the same kernels on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#define KD_DEVICE __device__ __forceinline__
#define KD_BOTH __host__ __device__ __forceinline__

namespace kdengine::cuda {

constexpr int kWarp = 32;

KD_DEVICE int lane_index() { return threadIdx.x % kWarp; }
KD_DEVICE int warp_index() { return threadIdx.x / kWarp; }

#ifdef KDENGINE_CUDA_EMULATION

KD_DEVICE unsigned char* shared_memory() { return emulation::shared_memory(); }
KD_DEVICE int cluster_rank() { return emulation::cluster_rank(); }
KD_DEVICE int cluster_size() { return emulation::cluster_size(); }
KD_DEVICE void cluster_sync() { emulation::cluster_sync(); }
template <class T>
KD_DEVICE T cluster_read(const T* own, int rank) {
  return *emulation::map_shared_rank(own, rank);
}
KD_DEVICE float fast_exp2(float x) { return emulation::fast_exp2(x); }
KD_DEVICE float half_to_float(uint16_t bits) { return emulation::half_to_float(bits); }
KD_DEVICE uint32_t round_pair_to_half(float low, float high) {
  return emulation::round_to_half(low) | uint32_t(emulation::round_to_half(high)) << 16;
}
KD_DEVICE uint32_t round_pair_to_bf16(float low, float high) {
  return emulation::round_to_bf16(low) | uint32_t(emulation::round_to_bf16(high)) << 16;
}

#else

KD_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

KD_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

KD_DEVICE float half_to_float(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

KD_DEVICE uint32_t round_pair_to_half(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

KD_DEVICE uint32_t round_pair_to_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

#if __CUDA_ARCH__ >= 900

KD_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

KD_DEVICE int cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}

// Every thread of every block of the cluster: what was written to shared memory before is seen behind it.
KD_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The value that lies at `own` in the shared memory of block `rank`; T is made of 8-byte words.
template <class T>
KD_DEVICE T cluster_read(const T* own, int rank) {
  static_assert(sizeof(T) % 8 == 0, "whole words");
  uint64_t words[sizeof(T) / 8];
  uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(own)), there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(from), "r"(rank));
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / 8; ++i) {
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(words[i]) : "r"(there + uint32_t(8 * i)) : "memory");
  }
  T value;
  memcpy(&value, words, sizeof value);
  return value;
}

#else  // no clusters: a block is alone

KD_DEVICE int cluster_rank() { return 0; }
KD_DEVICE int cluster_size() { return 1; }
KD_DEVICE void cluster_sync() {}
template <class T>
KD_DEVICE T cluster_read(const T* own, int) {
  return *own;
}

#endif
#endif

template <class T>
KD_DEVICE T shuffle_xor(T value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

KD_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

// Sum over aligned groups of `width` lanes, the same bits in every lane: a + b and b + a are equal.
template <class T>
KD_DEVICE T lanes_sum(T value, int width = kWarp) {
  for (int distance = width / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

// The larger of two numbers; a NaN loses.
KD_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
KD_DEVICE double larger(double a, double b) { return fmax(a, b); }

template <class T>
KD_DEVICE T lanes_max(T value, int width = kWarp) {
  for (int distance = width / 2; distance > 0; distance /= 2) value = larger(value, shuffle_xor(value, distance));
  return value;
}

}  // namespace kdengine::cuda
