// bfloat16 in pairs: two rows interleaved, as the dot-product instructions want them.
#pragma once
#include "vec512.h"
//
#include "float32.h"

namespace {

// 16 channels of two tokens -> 16 pairs, the first token in the low half
inline __m512i interleave(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

inline __m256i sixteen(const uint16_t* row, int64_t left) {
  const __mmask16 there = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  return _mm256_maskz_loadu_epi16(there, row);
}

inline bool counts(const uint8_t* keep, int64_t t, int64_t n) { return t < n && (!keep || keep[t]); }

// 16 channels from `c` of tokens t and t + 1, zero where one does not count
inline __m512i pair(const uint16_t* x, int64_t step, int64_t t, int64_t n, const uint8_t* keep, int64_t c, int64_t width) {
  const __m256i none = _mm256_setzero_si256();
  return interleave(counts(keep, t, n) ? sixteen(x + t * step + c, width - c) : none,
                    counts(keep, t + 1, n) ? sixteen(x + (t + 1) * step + c, width - c) : none);
}

// n tokens -> [pair of tokens][channel], followed by pairs of nothing up to `pairs`
void interleave_rows(const uint16_t* x, int64_t step, int64_t n, const uint8_t* keep, int64_t width, int64_t pairs, uint32_t* out) {
  const int64_t pitch = pitch_f32(width);
  for (int64_t t = 0; t < 2 * pairs; t += 2, out += pitch)
    for (int64_t c = 0; c < width; c += 16) _mm512_storeu_si512(out + c, pair(x, step, t, n, keep, c, width));
}

// A matrix (rows x columns) -> [pair of rows][column], twice: rounded to bfloat16, and what the rounding left. Rounded alone it would add
// an error of its own, of the same sign for all rows where they are alike.
constexpr int PARTS = 2;

int64_t packed_pairs(int64_t rows, int64_t columns) { return PARTS * rows / 2 * pitch_f32(columns) * 4; }

void pack_pairs(const float* matrix, int64_t rows, int64_t columns, void* packed) {
  const int64_t pitch = pitch_f32(columns);
  uint32_t* out = static_cast<uint32_t*>(packed);
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < pitch; c += W) {
      const int64_t left = least(W, columns - c);
      V rest[2];
      for (int i = 0; i < 2; i++) {
        const float* row = matrix + (r + i) * columns + c;
        rest[i] = left == W ? Vec::load(row) : load_some(row, left);
      }
      for (int part = 0; part < PARTS; part++) {
        alignas(32) uint16_t rounded[2][W];
        for (int i = 0; i < 2; i++) {
          Vec::store_bf16(rounded[i], rest[i]);
          rest[i] = Vec::sub(rest[i], Vec::load_bf16(rounded[i]));
        }
        _mm512_storeu_si512(out + (part * rows / 2 + r / 2) * pitch + c, interleave(sixteen(rounded[0], W), sixteen(rounded[1], W)));
      }
    }
}

constexpr int64_t PAIR = 2;  // widths are whole pairs: one must not reach into the next head

}  // namespace
