// What the emulated device is like, and what it has done.
#pragma once

namespace emulation {

struct Device {
  int capability = 90;
  int processors = 16;
  int shared_per_block = 227 * 1024;
  int shared_per_processor = 228 * 1024;
  int largest_cluster = 16;
  unsigned seed = 0;
  int launches = 0;  // kernels run since the last reset
  int blocks = 0;    // of the last one
};

extern Device device;

}  // namespace emulation
