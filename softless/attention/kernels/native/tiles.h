// The tile registers of AMX: 8 of 16 rows x 64 bytes, as macros since a register's number is part of the instruction.
//
// With SOFTLESS_EMULATE_TILES they are plain arrays, so that the packing and the indices of amx.cpp are tested on processors without AMX.
#pragma once
#include <cstdint>
#include <cstring>

#include "pairs.h"

#ifdef SOFTLESS_EMULATE_TILES
namespace {
thread_local uint32_t tiles[8][16][16];

inline void emulate_load(int tile, const void* from, int64_t step) {
  for (int row = 0; row < 16; row++) memcpy(tiles[tile][row], static_cast<const char*>(from) + row * step, 64);
}
inline void emulate_store(int tile, void* to, int64_t step) {
  for (int row = 0; row < 16; row++) memcpy(static_cast<char*>(to) + row * step, tiles[tile][row], 64);
}
inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline void emulate_product(int c, int a, int b) {
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 16; column++) {
      float sum = as_float(tiles[c][row][column]);
      for (int k = 0; k < 16; k++) {
        const uint32_t left = tiles[a][row][k], right = tiles[b][k][column];
        sum += as_float(left << 16) * as_float(right << 16) + as_float(left & 0xffff0000u) * as_float(right & 0xffff0000u);
      }
      memcpy(&tiles[c][row][column], &sum, 4);
    }
}
inline void tiles_begin() {}
inline void tiles_end() {}
}  // namespace
#define TILE_LOAD(tile, from, step) emulate_load(tile, from, step)
#define TILE_STORE(tile, to, step) emulate_store(tile, to, step)
#define TILE_ZERO(tile) memset(tiles[tile], 0, sizeof(tiles[tile]))
#define TILE_PRODUCT(c, a, b) emulate_product(c, a, b)
#else
namespace {
inline void tiles_begin() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {0};
    uint16_t bytes[16] = {0};
    uint8_t rows[16] = {0};
  } shape;
  for (int i = 0; i < 8; i++) {
    shape.bytes[i] = 64;
    shape.rows[i] = 16;
  }
  _tile_loadconfig(&shape);
}
inline void tiles_end() { _tile_release(); }
}  // namespace
#define TILE_LOAD(tile, from, step) _tile_loadd(tile, from, step)
#define TILE_STORE(tile, to, step) _tile_stored(tile, to, step)
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_PRODUCT(c, a, b) _tile_dpbf16ps(c, a, b)
#endif
