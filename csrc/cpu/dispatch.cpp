// Which instruction set runs.
#include <stdlib.h>
#include <string.h>

#include <string>

#include "cpu.h"
#include "kernels.h"

namespace kdengine::cpu {
namespace {

constexpr const char* kVariable = "KDENGINE_CPU_ISA";

#if defined(__x86_64__) || defined(__i386__)
// Of the processor and of the operating system, which has to save the registers.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
const Kernels* if_avx2() { return has_avx2() ? &avx2_kernels() : nullptr; }
const Kernels* if_avx512() { return has_avx512() ? &avx512_kernels() : nullptr; }
#else
const Kernels* if_avx2() { return nullptr; }
const Kernels* if_avx512() { return nullptr; }
#endif

struct Choice {
  const Kernels* kernels;
  std::string refusal;
};

Choice choose() {
  const char* wanted = getenv(kVariable);
  const Kernels* const best[] = {if_avx512(), if_avx2(), &portable_kernels()};
  std::string there;
  for (const Kernels* k : best) {
    if (k == nullptr) continue;
    if (wanted == nullptr || *wanted == 0 || strcmp(wanted, k->name) == 0) return {k, ""};
    there += there.empty() ? k->name : std::string(", ") + k->name;
  }
  return {nullptr, std::string(kVariable) + "=" + wanted + " is not an instruction set that this processor has; unset " +
                       kVariable + " or set it to one of: " + there};
}

const Choice& choice() {
  static const Choice made = choose();
  return made;
}

}  // namespace

const Kernels* kernels() { return choice().kernels; }

const char* instruction_set() { return choice().kernels == nullptr ? nullptr : choice().kernels->name; }

const char* refusal() { return choice().kernels == nullptr ? choice().refusal.c_str() : nullptr; }

}  // namespace kdengine::cpu
