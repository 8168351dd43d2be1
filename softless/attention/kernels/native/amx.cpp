// AMX: bfloat16 products in tiles of 16 x 16 results, 32 deep. Widths that are no multiples of 16 go to AVX-512-BF16.
#include "tiles.h"

namespace {

// 16 pairs x 16 channels -> 16 channels x 16 pairs
inline void transpose(const uint32_t* from, int64_t pitch, uint32_t* to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * pitch);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
      t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    _mm512_storeu_si512(to + j * 16, _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88));
    _mm512_storeu_si512(to + (8 + j) * 16, _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd));
  }
}

// tokens are padded to 32, the depth of a tile
inline int64_t depth(int64_t n) { return round_up(n, 32) / 2; }

// m (16 or 32 rows, 16 or 32 columns) += left right; left holds blocks of 16 channels x 16 pairs, one after another along the pairs
template <int I, int J> inline void tile_product(const uint32_t* left, const uint32_t* right, int64_t pitch, int64_t blocks, float* m) {
  const int64_t step = pitch * 4, next = blocks * 256;
  TILE_LOAD(0, m, step);
  if constexpr (J > 1) TILE_LOAD(1, m + 16, step);
  if constexpr (I > 1) TILE_LOAD(2, m + 16 * pitch, step);
  if constexpr (I > 1 && J > 1) TILE_LOAD(3, m + 16 * pitch + 16, step);
  for (int64_t b = 0; b < blocks; b++, left += 256, right += 16 * pitch) {
    TILE_LOAD(4, left, 64);
    TILE_LOAD(6, right, step);
    TILE_PRODUCT(0, 4, 6);
    if constexpr (J > 1) {
      TILE_LOAD(7, right + 16, step);
      TILE_PRODUCT(1, 4, 7);
    }
    if constexpr (I > 1) {
      TILE_LOAD(5, left + next, 64);
      TILE_PRODUCT(2, 5, 6);
    }
    if constexpr (I > 1 && J > 1) TILE_PRODUCT(3, 5, 7);
  }
  TILE_STORE(0, m, step);
  if constexpr (J > 1) TILE_STORE(1, m + 16, step);
  if constexpr (I > 1) TILE_STORE(2, m + 16 * pitch, step);
  if constexpr (I > 1 && J > 1) TILE_STORE(3, m + 16 * pitch + 16, step);
}

constexpr int64_t DEEP = 256;  // tokens at a time

void product_tiles(const void* k, int64_t k_step, const void* v, int64_t v_step, int64_t n, const uint8_t* keep, int64_t D, int64_t E, void* scratch, float* m, const Ahead&) {
  const int64_t pairs = depth(n), blocks = pairs / 16;
  uint32_t* keys = static_cast<uint32_t*>(scratch);
  uint32_t* values = keys + pairs * D;
  uint32_t* turned = values + pairs * E;
  interleave_rows(static_cast<const uint16_t*>(k), k_step, n, keep, D, pairs, keys);
  interleave_rows(static_cast<const uint16_t*>(v), v_step, n, keep, E, pairs, values);
  for (int64_t i = 0; i < D; i += 16)
    for (int64_t b = 0; b < blocks; b++) transpose(keys + b * 16 * D + i, D, turned + (i * blocks + b * 16) * 16);
  for (int64_t i = 0; i < D;) {
    const uint32_t* left = turned + i * blocks * 16;
    const bool two = i + 32 <= D;
    for (int64_t j = 0; j < E;) {
      float* place = m + i * E + j;
      const bool wide = j + 32 <= E;
      if (two && wide) tile_product<2, 2>(left, values + j, E, blocks, place);
      else if (two) tile_product<2, 1>(left, values + j, E, blocks, place);
      else if (wide) tile_product<1, 2>(left, values + j, E, blocks, place);
      else tile_product<1, 1>(left, values + j, E, blocks, place);
      j += wide ? 32 : 16;
    }
    i += two ? 32 : 16;
  }
}

int64_t scratch_tiles(int64_t D, int64_t E) { return DEEP / 2 * (2 * D + E) * 4 + 32 * 32 * 4; }

// out (16 or 32 tokens, 16 or 32 columns)
template <int I, int J> inline void tile_apply(const Apply& call, int64_t row, int64_t column, float* results) {
  const int64_t pitch = pitch_f32(call.columns), step = call.x_step * 2;
  const uint16_t* x = static_cast<const uint16_t*>(call.x) + row * call.x_step;
  const uint32_t* matrix = static_cast<const uint32_t*>(call.packed) + column;
  TILE_ZERO(0);
  if constexpr (J > 1) TILE_ZERO(1);
  if constexpr (I > 1) TILE_ZERO(2);
  if constexpr (I > 1 && J > 1) TILE_ZERO(3);
  for (int64_t k = 0; k < PARTS * call.rows; k += 32, matrix += 16 * pitch) {
    const int64_t c = k % call.rows;  // the parts of the matrix follow one another
    TILE_LOAD(4, x + c, step);
    TILE_LOAD(6, matrix, pitch * 4);
    TILE_PRODUCT(0, 4, 6);
    if constexpr (J > 1) {
      TILE_LOAD(7, matrix + 16, pitch * 4);
      TILE_PRODUCT(1, 4, 7);
    }
    if constexpr (I > 1) {
      TILE_LOAD(5, x + 16 * call.x_step + c, step);
      TILE_PRODUCT(2, 5, 6);
    }
    if constexpr (I > 1 && J > 1) TILE_PRODUCT(3, 5, 7);
  }
  TILE_STORE(0, results, 128);
  if constexpr (J > 1) TILE_STORE(1, results + 16, 128);
  if constexpr (I > 1) TILE_STORE(2, results + 16 * 32, 128);
  if constexpr (I > 1 && J > 1) TILE_STORE(3, results + 16 * 32 + 16, 128);
  const Writing<uint16_t> write{call};
  for (int i = 0; i < 16 * I; i++) {
    V acc[1][J];
    for (int j = 0; j < J; j++) acc[0][j] = Vec::load(results + i * 32 + j * 16);
    write(acc, row + i, column);
  }
}

void apply_tiles(const Apply& call) {
  const int64_t whole = call.rows % 32 ? 0 : call.n / 16 * 16, pitch = pitch_f32(call.columns);
  float* results = static_cast<float*>(call.scratch);
  for (int64_t row = 0; row < whole;) {
    const bool two = row + 32 <= whole;
    for (int64_t column = 0; column < pitch;) {
      const bool wide = column + 32 <= pitch;
      if (two && wide) tile_apply<2, 2>(call, row, column, results);
      else if (two) tile_apply<2, 1>(call, row, column, results);
      else if (wide) tile_apply<1, 2>(call, row, column, results);
      else tile_apply<1, 1>(call, row, column, results);
      column += wide ? 32 : 16;
    }
    row += two ? 32 : 16;
  }
  if (whole < call.n) {  // the last few tokens, and widths that do not fill a tile
    Apply rest = call;
    rest.x = static_cast<const uint16_t*>(call.x) + whole * call.x_step;
    rest.out = static_cast<uint16_t*>(call.out) + whole * call.out_step;
    if (call.slope != FLAT) rest.y = static_cast<const uint16_t*>(call.y) + whole * call.y_step;
    rest.n = call.n - whole;
    avx512bf16_bf16.apply(rest);
  }
}

}  // namespace

namespace softless {
const Arithmetic amx_bf16 = {"amx", DEEP, magnitude<bf16>, product_tiles, pitch_f32, scratch_tiles, packed_pairs, pack_pairs, apply_tiles,
                             centre<bf16>, panels_f32, apply<float, bf16>, join_f32, scale_f32, 16, tiles_begin, tiles_end};
}  // namespace softless
