// AVX-512-BF16: products of bfloat16 pairs summed in float32.
#include "pairs.h"

namespace {

inline __m512bh both(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// acc[i][j] = sum over pairs l of a[i * row + l * next] . b[l * pitch + j], the left side in bytes; for each of P parts of b that follow one another
template <int P, int R, int C> inline void multiply_pairs(V (&acc)[R][C], const char* a, int64_t row, int64_t next, const uint32_t* b, int64_t pitch, int64_t n) {
  for (int i = 0; i < R; i++)
    for (int j = 0; j < C; j++) acc[i][j] = Vec::zero();
  for (int part = 0; part < P; part++, b += n * pitch)
    for (int64_t l = 0; l < n; l++) {
      __m512bh right[C];
      for (int j = 0; j < C; j++) right[j] = both(_mm512_loadu_si512(b + l * pitch + j * W));
      for (int i = 0; i < R; i++) {
        int32_t one;
        memcpy(&one, a + i * row + l * next, 4);  // a row of bfloat16 may begin at any even address
        const __m512bh left = both(_mm512_set1_epi32(one));
        for (int j = 0; j < C; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], left, right[j]);
      }
    }
}

template <int P, int R, int C, class End> inline void few_pairs(const char* a, int64_t row, int64_t next, const uint32_t* b, int64_t pitch, int64_t n, int64_t from, int64_t rows, int64_t column, const End& end) {
  if constexpr (R > 0) {
    if (rows == R) {
      V acc[R][C];
      multiply_pairs<P>(acc, a + from * row, row, next, b + column, pitch, n);
      end(acc, from, column);
    } else {
      few_pairs<P, R - 1, C>(a, row, next, b, pitch, n, from, rows, column, end);
    }
  }
}

template <int P, int C, class End> void bands_pairs(const char* a, int64_t row, int64_t next, const uint32_t* b, int64_t pitch, int64_t n, int64_t rows, int64_t column, const End& end) {
  constexpr int R = Vec::R[C - 1];
  for (; column + C * W <= pitch; column += C * W) {
    int64_t from = 0;
    for (; from + R <= rows; from += R) few_pairs<P, R, C>(a, row, next, b, pitch, n, from, R, column, end);
    few_pairs<P, R - 1, C>(a, row, next, b, pitch, n, from, rows - from, column, end);
  }
  if constexpr (C > 1) bands_pairs<P, C - 1>(a, row, next, b, pitch, n, rows, column, end);
}

void product_pairs(const void* k, int64_t k_step, const void* v, int64_t v_step, int64_t n, const uint8_t* keep, int64_t D, int64_t E, void* scratch, float* m) {
  const int64_t left = pitch_f32(D), right = pitch_f32(E), pairs = (n + 1) / 2;
  uint32_t* keys = static_cast<uint32_t*>(scratch);
  uint32_t* values = keys + pairs * left;
  interleave_rows(static_cast<const uint16_t*>(k), k_step, n, keep, D, pairs, keys);
  interleave_rows(static_cast<const uint16_t*>(v), v_step, n, keep, E, pairs, values);
  bands_pairs<1, Vec::C>(reinterpret_cast<const char*>(keys), 4, 4 * left, values, right, pairs, D, 0, Adding{m, right});
}

void apply_pairs(const Apply& call) {
  bands_pairs<PARTS, Vec::C>(static_cast<const char*>(call.x), 2 * call.x_step, 4, static_cast<const uint32_t*>(call.packed), pitch_f32(call.columns), call.rows / 2, call.n, 0, Writing<uint16_t>{call});
}

}  // namespace

namespace softless {
const Arithmetic avx512bf16_bf16 = {"avx512_bf16", TILE,         magnitude<uint16_t>, product_pairs, pitch_f32, scratch_f32,
                                    packed_pairs,  pack_pairs,   apply_pairs,         even_width, nullptr,   nullptr};
}  // namespace softless
