// Inner loops in float32 over vectors of one width: float32 as it is, bfloat16 widened on the way in and rounded on the way out.
//
// Included by one file per instruction set, after it has defined `Vec`. All of it is local to that file: two files compiled for
// different processors must not share an inline function.
//
//   Vec::W             floats in a vector
//   Vec::R[c - 1]      rows of a register tile that is c vectors wide; Vec::C is the widest
//   load, load_bf16, load_some(p, n), store, store_some(p, v, n), store_bf16(p, v, n), set1, zero, fma, add, sub, abs, sign_times(y, f)
#include <cstring>

#include "arithmetic.h"

namespace {
using namespace softless;
using V = Vec::T;
constexpr int W = Vec::W;
using bf16 = uint16_t;

inline float widened(float x) { return x; }
inline float widened(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}
inline V load(const float* p) { return Vec::load(p); }
inline V load(const bf16* p) { return Vec::load_bf16(p); }
template <class T> inline V load_some(const T* p, int64_t n) {
  alignas(64) float whole[W] = {0};
  for (int64_t i = 0; i < n; i++) whole[i] = widened(p[i]);
  return Vec::load(whole);
}
inline void store(float* p, V v) { Vec::store(p, v); }
inline void store(bf16* p, V v) { Vec::store_bf16(p, v); }
template <class T> inline void store_some(T* p, V v, int64_t n) {
  alignas(64) T whole[W];
  store(whole, v);
  memcpy(p, whole, static_cast<size_t>(n) * sizeof(T));
}

inline V grown(V total, V x, Norm norm) { return norm == L2 ? Vec::fma(x, x, total) : Vec::add(total, norm == L1 ? Vec::abs(x) : x); }

template <class T, int C> inline void magnitude_columns(const T* x, int64_t step, int64_t n, const uint8_t* keep, Norm norm, float* total) {
  V sum[C];
  for (int j = 0; j < C; j++) sum[j] = Vec::zero();
  for (int64_t t = 0; t < n; t++) {
    if (keep && !keep[t]) continue;
    for (int j = 0; j < C; j++) sum[j] = grown(sum[j], load(x + t * step + j * W), norm);
  }
  for (int j = 0; j < C; j++) Vec::store(total + j * W, Vec::add(sum[j], Vec::load(total + j * W)));
}

template <class T> void magnitude(const void* data, int64_t step, int64_t n, const uint8_t* keep, int64_t width, Norm norm, float* total) {
  const T* x = static_cast<const T*>(data);
  int64_t c = 0;
  for (; c + 4 * W <= width; c += 4 * W) magnitude_columns<T, 4>(x + c, step, n, keep, norm, total + c);
  for (; c + W <= width; c += W) magnitude_columns<T, 1>(x + c, step, n, keep, norm, total + c);
  for (; c < width; c++) {
    float sum = 0;
    for (int64_t t = 0; t < n; t++) {
      if (keep && !keep[t]) continue;
      const float one = widened(x[t * step + c]);
      sum += norm == L1 ? __builtin_fabsf(one) : norm == L2 ? one * one : one;
    }
    total[c] += sum;
  }
}

// rows of a panel: contiguous float32, zero where a token does not count and beyond the width
template <class T> void widen(const T* x, int64_t step, int64_t n, const uint8_t* keep, int64_t width, float* panel) {
  const int64_t pitch = round_up(width, W);
  for (int64_t t = 0; t < n; t++, panel += pitch, x += step) {
    int64_t c = 0;
    if (keep && !keep[t]) {
      memset(panel, 0, static_cast<size_t>(pitch) * sizeof(float));
      continue;
    }
    for (; c + W <= width; c += W) Vec::store(panel + c, load(x + c));
    if (c < width) Vec::store(panel + c, load_some(x + c, width - c));
  }
}

// A panel less what is taken off each channel, with its sums over the tokens.
template <class T> void centre(const void* data, int64_t step, int64_t n, const uint8_t* keep, int64_t width, const float* high, const float* low, float* panel, float* rest, float* squares) {
  const T* x = static_cast<const T*>(data);
  const int64_t pitch = round_up(width, W);
  for (int64_t c = 0; c < pitch; c += W) {
    const int64_t left = least(W, width - c);
    const auto part = [left, c](const auto* p) { return left == W ? load(p + c) : load_some(p + c, left); };
    const V first = part(high), second = low ? part(low) : Vec::zero();
    V sum = Vec::zero(), square = Vec::zero();
    for (int64_t t = 0; t < n; t++) {
      V one = Vec::zero();
      if (!keep || keep[t]) one = Vec::sub(Vec::sub(part(x + t * step), first), second);
      Vec::store(panel + t * pitch + c, one);
      sum = Vec::add(sum, one);
      square = Vec::fma(one, one, square);
    }
    const auto join = [&](float* total, V more) {
      if (!total) return;
      if (left == W) Vec::store(total + c, Vec::add(more, Vec::load(total + c)));
      else store_some(total + c, Vec::add(more, load_some(total + c, left)), left);
    };
    join(rest, sum);
    join(squares, square);
  }
}

// Asks for what is read next while a register tile of R rows is filled: the rows of the tile are channels, and those channels of the next
// tokens are asked for, one token at a time.
class Asking {
 public:
  Asking(const Ahead& ahead, int64_t from, int64_t rows, int64_t column) : due_(column == 0 && from * ahead.size % LINE < rows * ahead.size) {
    for (int i = 0; i < 3; i++) {
      at_[i] = ahead.at[i] + from * ahead.size;
      step_[i] = ahead.step[i];
    }
  }
  void token() {
    for (int i = 0; due_ && i < 3; i++) {
      __builtin_prefetch(at_[i], 0, 2);
      at_[i] += step_[i];
    }
  }

 private:
  static constexpr int64_t LINE = 64;
  const bool due_;  // these channels reach a line that no tile before has asked for
  const char* at_[3];
  int64_t step_[3];
};

struct Silent {  // asks for nothing
  Silent(const Ahead&, int64_t, int64_t, int64_t) {}
  void token() {}
};

// Fills a register tile: acc[i][j] = sum over l of a[i * row + l * next] * b[l * pitch + j].
template <class A, class Ask> struct Multiplying {
  const A* a;
  int64_t row, next;
  const float* b;
  int64_t pitch, n;
  const Ahead& ahead;
  template <int R, int C> void operator()(V (&acc)[R][C], int64_t from, int64_t column) const {
    for (int i = 0; i < R; i++)
      for (int j = 0; j < C; j++) acc[i][j] = Vec::zero();
    const A* left = a + from * row;
    Ask ask(ahead, from, R, column);
    for (int64_t l = 0; l < n; l++) {
      ask.token();
      V right[C];
      for (int j = 0; j < C; j++) right[j] = Vec::load(b + column + l * pitch + j * W);
      for (int i = 0; i < R; i++) {
        const V one = Vec::set1(widened(left[i * row + l * next]));
        for (int j = 0; j < C; j++) acc[i][j] = Vec::fma(one, right[j], acc[i][j]);
      }
    }
  }
};

struct Adding {  // the tile joins a float32 sum
  float* m;
  int64_t pitch;
  template <int R, int C> void operator()(V (&acc)[R][C], int64_t row, int64_t column) const {
    for (int i = 0; i < R; i++)
      for (int j = 0; j < C; j++) {
        float* place = m + (row + i) * pitch + column + j * W;
        Vec::store(place, Vec::add(acc[i][j], Vec::load(place)));
      }
  }
};

template <class T> struct Writing {  // the tile becomes output, with its slope
  const Apply& call;
  template <int R, int C> void operator()(V (&acc)[R][C], int64_t row, int64_t column) const {
    for (int j = 0; j < C; j++) {
      const int64_t at = column + j * W, left = least(W, call.columns - at);
      const V factor = call.slope == FLAT ? Vec::zero() : left == W ? Vec::load(call.factor + at) : load_some(call.factor + at, left);
      for (int i = 0; i < R; i++) {
        V value = acc[i][j];
        if (call.slope == OFFSET) {
          value = Vec::add(value, factor);
        } else if (call.slope != FLAT) {
          const T* other = static_cast<const T*>(call.y) + (row + i) * call.y_step + at;
          const V y = left == W ? load(other) : load_some(other, left);
          value = call.slope == SIGN ? Vec::add(value, Vec::sign_times(y, factor)) : Vec::fma(y, factor, value);
        }
        T* place = static_cast<T*>(call.out) + (row + i) * call.out_step + at;
        if (left == W) store(place, value);
        else store_some(place, value, left);
      }
    }
  }
};

// Rows from `from` on of a band of C vectors, as one register tile.
template <int R, int C, class Fill, class End> inline void tile(const Fill& fill, int64_t from, int64_t rows, int64_t column, const End& end) {
  if constexpr (R > 0) {
    if (rows == R) {
      V acc[R][C];
      fill(acc, from, column);
      end(acc, from, column);
    } else {
      tile<R - 1, C>(fill, from, rows, column, end);
    }
  }
}

// All rows and columns up to the pitch: bands of C vectors, of fewer at the end; tiles of R rows, of fewer at the end.
template <int C, class Fill, class End> void tiles_of(const Fill& fill, int64_t pitch, int64_t rows, int64_t column, const End& end) {
  constexpr int R = Vec::R[C - 1];
  for (; column + C * W <= pitch; column += C * W) {
    int64_t from = 0;
    for (; from + R <= rows; from += R) tile<R, C>(fill, from, R, column, end);
    tile<R - 1, C>(fill, from, rows - from, column, end);
  }
  if constexpr (C > 1) tiles_of<C - 1>(fill, pitch, rows, column, end);
}

void join_f32(const float* from, int64_t n, bool first, double* to) {
  if (first)
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
  else
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

void scale_f32(const float* from, int64_t n, double by, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = static_cast<float>(by * from[i]);
}

int64_t pitch_f32(int64_t width) { return round_up(width, W); }

void panels_f32(const float* k, const float* v, int64_t n, int64_t D, int64_t E, float* m, const Ahead& ahead) {
  const int64_t left = pitch_f32(D), right = pitch_f32(E);
  tiles_of<Vec::C>(Multiplying<float, Asking>{k, 1, left, v, right, n, ahead}, right, D, 0, Adding{m, right});
}

template <class T> void product(const void* k, int64_t k_step, const void* v, int64_t v_step, int64_t n, const uint8_t* keep, int64_t D, int64_t E, void* scratch, float* m, const Ahead& ahead) {
  float* keys = static_cast<float*>(scratch);
  float* values = keys + n * pitch_f32(D);
  widen(static_cast<const T*>(k), k_step, n, keep, D, keys);
  widen(static_cast<const T*>(v), v_step, n, keep, E, values);
  panels_f32(keys, values, n, D, E, m, ahead);
}

int64_t packed_f32(int64_t rows, int64_t columns) { return rows * pitch_f32(columns) * static_cast<int64_t>(sizeof(float)); }

void pack_f32(const float* matrix, int64_t rows, int64_t columns, void* packed) {
  widen(matrix, columns, rows, nullptr, columns, static_cast<float*>(packed));
}

// Asks for the rows of the next call that lie where those of a register tile do in this one, and fills the tile.
template <class X, class T, class Fill> struct Fetching {
  const Fill& fill;
  const Apply& call;
  template <int R, int C> void operator()(V (&acc)[R][C], int64_t from, int64_t column) const {
    constexpr int64_t LINE = 64;
    const auto ask = [from](const auto* rows, int64_t step, int64_t width) {
      for (int i = 0; rows && i < R; i++)
        for (int64_t c = 0; c < width; c += LINE / static_cast<int64_t>(sizeof(*rows))) __builtin_prefetch(rows + (from + i) * step + c, 0, 2);
    };
    if (column == 0) {
      ask(static_cast<const X*>(call.next_x), call.x_step, call.rows);
      ask(static_cast<const T*>(call.next_y), call.y_step, call.columns);
      ask(static_cast<const T*>(call.next_out), call.out_step, call.columns);
    }
    fill(acc, from, column);
  }
};

template <class X, class T> void apply(const Apply& call) {
  const int64_t pitch = pitch_f32(call.columns);
  const Multiplying<X, Silent> fill{static_cast<const X*>(call.x), call.x_step, 1, static_cast<const float*>(call.packed), pitch, call.rows, NOTHING};
  tiles_of<Vec::C>(Fetching<X, T, Multiplying<X, Silent>>{fill, call}, pitch, call.n, 0, Writing<T>{call});
}

constexpr int64_t TILE = 64;
int64_t scratch_f32(int64_t D, int64_t E) { return TILE * (pitch_f32(D) + pitch_f32(E)) * static_cast<int64_t>(sizeof(float)); }

template <class T> constexpr Arithmetic float32_arithmetic(const char* name) {
  return {name, TILE, magnitude<T>, product<T>, pitch_f32, scratch_f32, packed_f32, pack_f32, apply<T, T>, centre<T>, panels_f32, apply<float, T>, join_f32, scale_f32, 1, nullptr, nullptr};
}

}  // namespace
