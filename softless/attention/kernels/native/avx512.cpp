// AVX-512 without bfloat16 products: bfloat16 is widened.
#include "vec512.h"
//
#include "float32.h"

namespace softless {
const Arithmetic avx512_f32 = float32_arithmetic<float>("avx512");
const Arithmetic avx512_bf16 = float32_arithmetic<uint16_t>("avx512");
}  // namespace softless
