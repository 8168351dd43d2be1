// AVX-512-BF16: products of bfloat16 pairs summed in float32.
#include "pairs.h"

namespace {

inline __m512bh both(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// As Multiplying, by pairs: the left side in bytes, and for each of P parts of b that follow one another.
template <int P, class Ask> struct MultiplyingPairs {
  const char* a;
  int64_t row, next;
  const uint32_t* b;
  int64_t pitch, n;
  const Ahead& ahead;
  template <int R, int C> void operator()(V (&acc)[R][C], int64_t from, int64_t column) const {
    for (int i = 0; i < R; i++)
      for (int j = 0; j < C; j++) acc[i][j] = Vec::zero();
    const char* left = a + from * row;
    const uint32_t* matrix = b + column;
    Ask ask(ahead, from, R, column);
    for (int part = 0; part < P; part++, matrix += n * pitch)
      for (int64_t l = 0; l < n; l++) {
        ask.token(), ask.token();
        __m512bh right[C];
        for (int j = 0; j < C; j++) right[j] = both(_mm512_loadu_si512(matrix + l * pitch + j * W));
        for (int i = 0; i < R; i++) {
          int32_t pair;
          memcpy(&pair, left + i * row + l * next, 4);  // a row of bfloat16 may begin at any even address
          const __m512bh one = both(_mm512_set1_epi32(pair));
          for (int j = 0; j < C; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], one, right[j]);
        }
      }
  }
};

void product_pairs(const void* k, int64_t k_step, const void* v, int64_t v_step, int64_t n, const uint8_t* keep, int64_t D, int64_t E, void* scratch, float* m, const Ahead& ahead) {
  const int64_t left = pitch_f32(D), right = pitch_f32(E), pairs = (n + 1) / 2;
  uint32_t* keys = static_cast<uint32_t*>(scratch);
  uint32_t* values = keys + pairs * left;
  interleave_rows(static_cast<const uint16_t*>(k), k_step, n, keep, D, pairs, keys);
  interleave_rows(static_cast<const uint16_t*>(v), v_step, n, keep, E, pairs, values);
  const char* rows = reinterpret_cast<const char*>(keys);
  tiles_of<Vec::C>(MultiplyingPairs<1, Asking>{rows, 4, 4 * left, values, right, pairs, ahead}, right, D, 0, Adding{m, right});
}

void apply_pairs(const Apply& call) {
  const int64_t pitch = pitch_f32(call.columns);
  const MultiplyingPairs<PARTS, Silent> fill{static_cast<const char*>(call.x), 2 * call.x_step, 4, static_cast<const uint32_t*>(call.packed), pitch, call.rows / 2, NOTHING};
  tiles_of<Vec::C>(Fetching<bf16, bf16, MultiplyingPairs<PARTS, Silent>>{fill, call}, pitch, call.n, 0, Writing<uint16_t>{call});
}

}  // namespace

namespace softless {
const Arithmetic avx512bf16_bf16 = {"avx512_bf16", TILE, magnitude<bf16>, product_pairs, pitch_f32, scratch_f32, packed_pairs, pack_pairs, apply_pairs,
                                    centre<bf16>, panels_f32, apply<float, bf16>, join_f32, scale_f32, PAIR, nullptr, nullptr};
}  // namespace softless
