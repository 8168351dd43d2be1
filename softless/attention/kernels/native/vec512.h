// Vectors of 16 floats, for the files compiled with AVX-512.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {
struct Vec {
  using T = __m512;
  static constexpr int W = 16, C = 4;
  static constexpr int R[C] = {16, 12, 8, 6};
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static T load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store(float* p, T v) { _mm512_storeu_ps(p, v); }
  static void store_bf16(uint16_t* p, T v) {  // to the nearest, ties to even; NaN stays one
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i half = _mm512_srli_epi32(_mm512_mask_set1_epi32(up, nan, 0x7fc00000), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(half));
  }
  static T set1(float x) { return _mm512_set1_ps(x); }
  static T zero() { return _mm512_setzero_ps(); }
  static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T abs(T a) { return _mm512_abs_ps(a); }
  static T sign_times(T y, T f) {
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(y), _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    const T signed_f = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(f), sign));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, zero(), _CMP_NEQ_OQ), signed_f);
  }
};
}  // namespace
