// What tests/csrc/cpu_library.py calls of the CPU kernels: with C linkage, and on threads of its own.
#include <stdint.h>

#include <thread>
#include <vector>

#include "cpu/cpu.h"

namespace {

int threads = 1;

void run(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t count = end - begin, most = (count + grain - 1) / grain;
  const int64_t parts = most < threads ? most : threads, size = (count + parts - 1) / parts;
  std::vector<std::thread> workers;
  for (int64_t at = begin + size; at < end; at += size) {
    workers.emplace_back(body, at, at + size < end ? at + size : end, context);
  }
  body(begin, begin + size < end ? begin + size : end, context);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

extern "C" {

uint32_t harness_kd_loss(const kdengine::Problem* problem, int count) {
  threads = count;
  return kdengine::cpu::kd_loss(*problem, {run, count});
}

const char* harness_instruction_set() { return kdengine::cpu::instruction_set(); }
const char* harness_refusal() { return kdengine::cpu::refusal(); }
int64_t harness_problem_size() { return sizeof(kdengine::Problem); }
}
