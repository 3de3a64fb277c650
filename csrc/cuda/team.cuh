// The threads that share a row of the general path, and what they do together.
#pragma once

#include "element.cuh"

namespace kdengine::cuda {

// The largest of the values offered, and where it was; the first of equals. A NaN or -inf is never the best.
template <class Real>
struct Best {
  Real value = -INFINITY;
  int64_t at = -1;

  KD_DEVICE void offer(Real x, int64_t j) {
    if (x > value) {
      value = x;
      at = j;
    }
  }
  KD_DEVICE void offer(const Best& other) {
    if (other.value > value || (other.value == value && other.at >= 0 && (at < 0 || other.at < at))) *this = other;
  }
};

template <class Real>
KD_DEVICE Best<Real> lanes_best(Best<Real> own) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    own.offer(Best<Real>{shuffle_xor(own.value, distance), shuffle_xor(own.at, distance)});
  }
  return own;
}

// A row to each thread: for few classes, or where classes lie far apart and rows side by side.
struct ThreadTeam {
  KD_DEVICE explicit ThreadTeam(unsigned char*) {}
  KD_DEVICE int64_t first() const { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
  KD_DEVICE int64_t step() const { return int64_t(gridDim.x) * blockDim.x; }
  KD_DEVICE int rank() const { return 0; }
  KD_DEVICE int size() const { return 1; }
  KD_DEVICE void sync() const {}
  KD_DEVICE double sum(double x) const { return x; }
  template <class Real>
  KD_DEVICE Best<Real> best(const Best<Real>& x) const {
    return x;
  }
  // A top-k teacher with a bin is a block's work.
  KD_DEVICE void clear_bits(int64_t) const {}
  KD_DEVICE void set_bit(int64_t) const {}
  KD_DEVICE bool bit(int64_t) const { return false; }
};

struct WarpTeam : ThreadTeam {
  using ThreadTeam::ThreadTeam;
  KD_DEVICE int64_t first() const { return int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp_index(); }
  KD_DEVICE int64_t step() const { return int64_t(gridDim.x) * (blockDim.x / kWarp); }
  KD_DEVICE int rank() const { return lane_index(); }
  KD_DEVICE int size() const { return kWarp; }
  KD_DEVICE void sync() const { __syncwarp(); }
  KD_DEVICE double sum(double x) const { return lanes_sum(x); }
  template <class Real>
  KD_DEVICE Best<Real> best(const Best<Real>& x) const {
    return lanes_best(x);
  }
};

class BlockTeam {
 public:
  // `shared`: one slot per warp, and behind them the bits.
  KD_DEVICE explicit BlockTeam(unsigned char* shared)
      : slots_(shared), bits_(reinterpret_cast<unsigned*>(shared + kSlots * kSlot)) {}
  static constexpr int kSlot = 16, kSlots = 32;

  KD_DEVICE int64_t first() const { return blockIdx.x; }
  KD_DEVICE int64_t step() const { return gridDim.x; }
  KD_DEVICE int rank() const { return threadIdx.x; }
  KD_DEVICE int size() const { return blockDim.x; }
  KD_DEVICE void sync() const { __syncthreads(); }

  KD_DEVICE double sum(double x) const {
    double total = 0;
    gather(lanes_sum(x), [&](double part) { total += part; });
    return total;
  }

  template <class Real>
  KD_DEVICE Best<Real> best(const Best<Real>& x) const {
    Best<Real> all;
    gather(lanes_best(x), [&](const Best<Real>& part) { all.offer(part); });
    return all;
  }

  KD_DEVICE void clear_bits(int64_t count) const {
    for (int64_t i = threadIdx.x; i < (count + 31) / 32; i += blockDim.x) bits_[i] = 0;
    __syncthreads();
  }
  KD_DEVICE void set_bit(int64_t j) const { atomicOr(&bits_[j / 32], 1u << (j % 32)); }
  KD_DEVICE bool bit(int64_t j) const { return bits_[j / 32] >> (j % 32) & 1u; }

 private:
  // Gives every thread the values of all warps, in their order.
  template <class T, class Take>
  KD_DEVICE void gather(const T& own, Take take) const {
    static_assert(sizeof(T) <= kSlot, "a slot holds it");
    __syncthreads();
    if (lane_index() == 0) *reinterpret_cast<T*>(slots_ + warp_index() * kSlot) = own;
    __syncthreads();
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
      take(*reinterpret_cast<const T*>(slots_ + warp * kSlot));
    }
  }

  unsigned char* slots_;
  unsigned* bits_;
};

}  // namespace kdengine::cuda
