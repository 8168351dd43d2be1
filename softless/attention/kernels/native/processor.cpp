#include "processor.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace softless {
namespace {

// Linux gives the large tile registers only to a process that asks for them.
bool tiles_granted() {
#ifdef SOFTLESS_EMULATE_TILES
  return true;
#else
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  unsigned a = 7, b, c = 0, d;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const bool has = (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
  return has && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
}

struct Found {
  const Arithmetic* f32[4] = {nullptr};
  const Arithmetic* bf16[5] = {nullptr};
  Found() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
    int n = 0, m = 0;
    if (pairs && tiles_granted()) bf16[m++] = &amx_bf16;
    if (pairs) bf16[m++] = &avx512bf16_bf16;
    if (avx512) f32[n++] = &avx512_f32, bf16[m++] = &avx512_bf16;
    if (avx2) f32[n++] = &avx2_f32, bf16[m++] = &avx2_bf16;
  }
};

}  // namespace

const Arithmetic* const* arithmetics(bool bf16) {
  static const Found found;
  return bf16 ? found.bf16 : found.f32;
}

const Arithmetic* choose(bool bf16, const char* name, int64_t D, int64_t E) {
  bool reached = !name;
  for (const Arithmetic* const* one = arithmetics(bf16); *one; one++) {
    reached = reached || strcmp(name, (*one)->name) == 0;
    if (!reached) continue;
    if (D % (*one)->width_unit == 0 && E % (*one)->width_unit == 0) return *one;
  }
  return nullptr;
}

}  // namespace softless
