// Forward KL, with or without cross-entropy on class ids, of contiguous rows in one dtype: the path that is to run at
// the memory's speed. A team (a warp, a block or a cluster of blocks) takes one row at a time and reads it once, tile
// by tile, the next tile being loaded while one is computed; the first tile of the next row is loaded before this row's
// sums are merged. What an element leaves for the gradient stays in registers or shared memory until they are.
#pragma once

#include "batch.cuh"
#include "shapes.h"
#include "terms.cuh"

namespace kdengine::cuda {

enum class Layout { warp, block, cluster };

struct Schedule {
  int tiles = 1;         // that one block (with Layout::warp: one warp) has of a row
  int kept = 0;          // of these, tiles whose terms stay in shared memory; the others are read twice
  int terms_at = 0;      // where those begin in shared memory, in bytes
  bool counted = false;  // a kernel ahead has counted the rows of a mean
};

// Sums of a part of a row together with what they count from; whole 8-byte words for cluster_read.
struct alignas(8) Part {
  Reference from;
  Sums<double> sums;
};

// The fixed head of the shared memory; references of the kept tiles and their terms lie behind it.
struct alignas(16) Head {
  Totals totals[kMostWarps];
  Part warps[kMostWarps];
  Part blocks[2];  // in turn: a block may be a row ahead of one that still reads
  Outcome outcome;
};

// Merges the parts of the lanes that hold one.
KD_DEVICE Part merged(const Part& part, bool there, float scale) {
  const Reference own = there ? part.from : Reference{};
  const Reference all{lanes_max(own.s), lanes_max(own.t)};
  const Sums<double> sums = there ? carried(part.sums, shift(own, all, scale)) : Sums<double>{};
  return {all, {lanes_sum(sums.A), lanes_sum(sums.B), lanes_sum(sums.D), lanes_sum(sums.Q), lanes_sum(sums.R)}};
}

template <class Element, Layout layout, bool resident, bool hard>
struct Streamed {
  static constexpr int kWidth = Vector<Element>::width;
  static constexpr int kElements = kTileElements;
  static constexpr int kVectors = kElements / kWidth;
  static constexpr int kPlanes = hard ? 3 : 2;

  struct Tile {
    Vector<Element> s[kVectors], t[kVectors];
  };

  // A row as this launch reads it. Vectors lie on 16-byte boundaries of the student: the first starts `offset` elements
  // before the row. A row that takes no part has no classes.
  struct View {
    const Element* s = nullptr;
    const Element* t = nullptr;
    int classes = 0;
    int offset = 0;
    int label = -1;
    float scale = 1;
    bool alike = true;  // the teacher's row is aligned like the student's
  };

  struct Running {
    Reference from;
    Sums<float> sums;
  };

  const Problem& problem;
  const Schedule& schedule;
  Head* const head;
  Reference* const references;  // [tile][warp]
  float4* const terms;          // [tile][plane][chunk of 4][thread]
  Divisors divisor;
  Totals totals;

  KD_DEVICE Streamed(const Problem& problem, const Schedule& schedule)
      : problem(problem),
        schedule(schedule),
        head(reinterpret_cast<Head*>(shared_memory())),
        references(reinterpret_cast<Reference*>(head + 1)),
        terms(reinterpret_cast<float4*>(shared_memory() + schedule.terms_at)) {}

  KD_DEVICE static int team_threads() { return layout == Layout::warp ? kWarp : blockDim.x; }
  KD_DEVICE static int team_thread() { return layout == Layout::warp ? lane_index() : threadIdx.x; }
  KD_DEVICE static int rank() { return layout == Layout::cluster ? cluster_rank() : 0; }
  KD_DEVICE static int blocks() { return layout == Layout::cluster ? cluster_size() : 1; }

  KD_DEVICE static int64_t first_row() {
    if (layout == Layout::warp) return int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
    return blockIdx.x / blocks();
  }
  KD_DEVICE static int64_t row_step() {
    if (layout == Layout::warp) return int64_t(gridDim.x) * (blockDim.x / kWarp);
    return gridDim.x / blocks();
  }

  // The first class of this thread's vector `v` of tile `tile`; negative in front of an unaligned row.
  KD_DEVICE static int first_class(int tile, int v, int offset) {
    return (((tile * blocks() + rank()) * kVectors + v) * team_threads() + team_thread()) * kWidth - offset;
  }

  KD_DEVICE View open(int64_t row) const {
    View view;
    if (row >= problem.outer * problem.inner) return view;
    const Task task = task_of(problem, row);
    if (!task.soft && !task.hard) return view;
    view.s = static_cast<const Element*>(problem.student.data) + row_offset(problem.student, row, problem.inner);
    view.t = view.s;  // without a soft term the teacher is not read, and the student's row in its place adds nothing
    if (task.soft) {
      view.t = static_cast<const Element*>(problem.teacher.data) + row_offset(problem.teacher, row, problem.inner);
      view.scale = static_cast<float>(1.4426950408889634 / task.temperature);
    }
    view.classes = static_cast<int>(problem.student.classes);
    view.offset = misalignment(view.s);
    view.alike = misalignment(view.t) == view.offset;
    if (task.hard && !task.hard_fault) view.label = static_cast<int>(task.label);
    return view;
  }

  // Classes outside the row are -inf on both sides, which adds nothing anywhere.
  KD_DEVICE static Vector<Element> fetch(const Element* row, int first, int classes, bool aligned) {
    if (aligned && first >= 0 && first + kWidth <= classes) return load_vector(row + first);
    Vector<Element> vector;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const int j = first + k;
      vector.at[k] = j >= 0 && j < classes ? row[j] : minus_infinity<Element>();
    }
    return vector;
  }

  KD_DEVICE static Tile fetch(const View& view, int tile) {
    Tile found;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_class(tile, v, view.offset);
      found.s[v] = fetch(view.s, first, view.classes, true);
      found.t[v] = fetch(view.t, first, view.classes, view.alike);
    }
    return found;
  }

  // References follow the maxima lazily: one that lets exponentials grow beyond 2 is replaced, for the whole warp.
  KD_DEVICE static void follow(const Tile& tile, const View& view, Running& running) {
    float s = -INFINITY, t = -INFINITY;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        s = larger(s, float(widen(tile.s[v].at[k])));
        t = larger(t, float(widen(tile.t[v].at[k])));
      }
    }
    const float unit = hard && view.scale < kLog2E ? kLog2E : view.scale;
    const bool grown = (s - running.from.s) * unit > 1 || (t - running.from.t) * view.scale > 1;
    if (!any_lane(grown)) return;
    const Reference to = larger(running.from, Reference{lanes_max(s), lanes_max(t)});
    running.sums = carried(running.sums, shift(running.from, to, view.scale));
    running.from = to;
  }

  KD_DEVICE static void accumulate_tile(const Tile& tile, const View& view, int number, Running& running,
                                        Terms (&out)[kElements]) {
    const Exponents exponents(view.scale, running.from);
    Sums<float> sums;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = view.label - first_class(number, v, view.offset);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        Terms& x = out[v * kWidth + k];
        x = accumulate<hard, sizeof(Element) == 4>(widen(tile.s[v].at[k]), widen(tile.t[v].at[k]), exponents, sums);
        if (hard && k == at && view.label >= 0) x.e = 0;  // R is the sum of the others
        sums.R += x.e;
      }
    }
    running.sums = running.sums + sums;
  }

  KD_DEVICE float4* terms_of(int tile, int plane, int chunk) const {
    return terms + ((tile * kPlanes + plane) * (kElements / 4) + chunk) * blockDim.x + threadIdx.x;
  }

  KD_DEVICE void keep(int tile, const Reference& from, const Terms (&x)[kElements]) const {
    if (lane_index() == 0) references[tile * (blockDim.x / kWarp) + warp_index()] = from;
#pragma unroll
    for (int c = 0; c < kElements / 4; ++c) {
      const Terms* four = x + 4 * c;
      *terms_of(tile, 0, c) = make_float4(four[0].d, four[1].d, four[2].d, four[3].d);
      *terms_of(tile, 1, c) = make_float4(four[0].b, four[1].b, four[2].b, four[3].b);
      if (hard) *terms_of(tile, 2, c) = make_float4(four[0].e, four[1].e, four[2].e, four[3].e);
    }
  }

  KD_DEVICE void recall(int tile, Terms (&x)[kElements]) const {
#pragma unroll
    for (int c = 0; c < kElements / 4; ++c) {
      const float4 d = *terms_of(tile, 0, c), b = *terms_of(tile, 1, c);
      const float4 e = hard ? *terms_of(tile, 2, c) : make_float4(0, 0, 0, 0);
      x[4 * c] = {d.x, b.x, e.x};
      x[4 * c + 1] = {d.y, b.y, e.y};
      x[4 * c + 2] = {d.z, b.z, e.z};
      x[4 * c + 3] = {d.w, b.w, e.w};
    }
  }

  // The warp's part of the row, in lane order.
  KD_DEVICE static Part warp_part(const Running& running) {
    const Sums<float>& x = running.sums;
    return {running.from, {lanes_sum(x.A), lanes_sum(x.B), lanes_sum(x.D), lanes_sum(x.Q), lanes_sum(x.R)}};
  }

  KD_DEVICE Outcome conclude_part(int64_t row, const Part& part, float scale, bool counts) {
    return conclude<Element>(problem, row, part.from, scale, part.sums, divisor, counts ? &totals : nullptr);
  }

  // All parts of the row merged: of the lanes, of the warps, of the cluster's blocks.
  KD_DEVICE Outcome merge(int64_t row, const Running& running, float scale, int turn) {
    const Part own = warp_part(running);
    if (layout == Layout::warp) return conclude_part(row, own, scale, lane_index() == 0);
    if (lane_index() == 0) head->warps[warp_index()] = own;
    __syncthreads();
    const int lane = lane_index();
    Part part;
    if (warp_index() == 0) {
      const bool there = lane < static_cast<int>(blockDim.x) / kWarp;
      part = merged(head->warps[there ? lane : 0], there, scale);
    }
    if (layout == Layout::cluster) {
      if (threadIdx.x == 0) head->blocks[turn] = part;
      cluster_sync();
      if (warp_index() == 0) {
        const bool there = lane < blocks();
        part = merged(cluster_read(&head->blocks[turn], there ? lane : 0), there, scale);
      }
    }
    if (threadIdx.x == 0) head->outcome = conclude_part(row, part, scale, rank() == 0);
    __syncthreads();
    return head->outcome;
  }

  KD_DEVICE static void write(Element* row, int first, int classes, bool aligned, const float* x) {
    const Vector<Element> vector = narrow_vector<Element>(x);
    if (aligned && first >= 0 && first + kWidth <= classes) {
      store_vector(row + first, vector);
      return;
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const int j = first + k;
      if (j >= 0 && j < classes) row[j] = vector.at[k];
    }
  }

  struct Target {
    Element* row;
    int classes, offset, label;
    bool aligned;
  };

  KD_DEVICE Target target(int64_t row, const View& view) const {
    Element* start = static_cast<Element*>(problem.student_gradient.data) +
                     row_offset(problem.student_gradient, row, problem.inner);
    const int offset = view.classes ? view.offset : misalignment(start);
    return {start, static_cast<int>(problem.student.classes), offset, view.label, misalignment(start) == offset};
  }

  KD_DEVICE static void write_tile(const Target& to, int tile, const Terms (&terms)[kElements], const Factors& by,
                                   float at_label) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_class(tile, v, to.offset);
      if (first >= to.classes) continue;
      float x[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        x[k] = gradient<hard>(terms[v * kWidth + k], by);
        if (hard && to.label >= 0 && first + k == to.label) x[k] += at_label;
      }
      write(to.row, first, to.classes, to.aligned, x);
    }
  }

  // Tiles that were read last come first: those that are read again may still be in the L2 cache.
  KD_DEVICE void write_gradient(int64_t row, const View& view, const Outcome& outcome) const {
    const Target to = target(row, view);
    Terms x[kElements];
    for (int tile = schedule.tiles - 1; tile >= schedule.kept; --tile) {
      Running again{outcome.reference, {}};
      accumulate_tile(fetch(view, tile), view, tile, again, x);
      write_tile(to, tile, x, outcome.factors(outcome.reference), outcome.at_label);
    }
    for (int tile = schedule.kept - 1; tile >= 0; --tile) {
      recall(tile, x);
      const Reference from = references[tile * (blockDim.x / kWarp) + warp_index()];
      write_tile(to, tile, x, outcome.factors(from), outcome.at_label);
    }
  }

  KD_DEVICE void run(Scratch* scratch) {
    divisor = divisors(problem, scratch, schedule.counted, head->totals);
    const int64_t rows = problem.outer * problem.inner, step = row_step();
    const bool wanted = problem.student_gradient.data != nullptr;
    int64_t row = first_row();
    View view = open(row);
    Tile ahead = fetch(view, 0);
    for (int turn = 0; row < rows; row += step, turn ^= 1) {
      const View next = open(row + step);
      Running running;
      Terms x[kElements];
      for (int tile = 0; tile < (resident ? 1 : schedule.tiles); ++tile) {
        const Tile now = ahead;
        const bool last = resident || tile + 1 == schedule.tiles;
        ahead = last ? fetch(next, 0) : fetch(view, tile + 1);
        follow(now, view, running);
        accumulate_tile(now, view, tile, running, x);
        if (!resident && wanted && tile < schedule.kept) keep(tile, running.from, x);
      }
      const Outcome outcome = merge(row, running, view.scale, turn);
      if (wanted && resident) {
        write_tile(target(row, view), 0, x, outcome.factors(running.from), outcome.at_label);
      } else if (wanted) {
        write_gradient(row, view, outcome);
      }
      view = next;
    }
    finish(problem, scratch, totals, divisor, head->totals);
    if (layout == Layout::cluster) cluster_sync();  // a neighbour may still read this block's sums
  }
};

}  // namespace kdengine::cuda
