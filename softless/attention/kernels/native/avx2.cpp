// AVX2 and FMA: vectors of 8 floats.
#include <immintrin.h>

#include <cstdint>

namespace {
struct Vec {
  using T = __m256;
  static constexpr int W = 8, C = 2;
  static constexpr int R[C] = {10, 6};
  static T load(const float* p) { return _mm256_loadu_ps(p); }
  static T load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  static void store_bf16(uint16_t* p, T v) {  // to the nearest, ties to even; NaN stays one
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static T set1(float x) { return _mm256_set1_ps(x); }
  static T zero() { return _mm256_setzero_ps(); }
  static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static T abs(T a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static T sign_times(T y, T f) {
    const T signed_f = _mm256_xor_ps(f, _mm256_and_ps(y, _mm256_set1_ps(-0.0f)));
    return _mm256_and_ps(signed_f, _mm256_cmp_ps(y, zero(), _CMP_NEQ_OQ));
  }
};
}  // namespace

#include "float32.h"

namespace softless {
const Arithmetic avx2_f32 = float32_arithmetic<float>("avx2");
const Arithmetic avx2_bf16 = float32_arithmetic<uint16_t>("avx2");
}  // namespace softless
