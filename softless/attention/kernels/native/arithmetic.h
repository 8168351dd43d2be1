// The inner loops of one kind of processor for one dtype. The driver (sums.cpp) owns tokens, threads, masks and totals.
//
// Sums are float32 within a tile of tokens; the driver adds tiles in float32 over a short group of them and groups in double.
#pragma once
#include <cstdint>

namespace softless {

enum Norm : int32_t { NONE = 0, L1 = 1, L2 = 2, PLAIN = 3 };  // PLAIN: the sum itself

// What is added to each output of `apply` beside the matrix product: nothing, factor * sign(y), factor * y, or factor alone.
enum Slope : int32_t { FLAT = 0, SIGN = 1, SELF = 2, OFFSET = 3 };

struct Apply {
  const void* x;          // n rows of `rows` channels
  int64_t x_step;         // elements from one row to the next, as every step here
  int64_t n;
  const void* packed;     // the matrix, rows x columns, as `pack` left it
  int64_t rows, columns;
  void* out;              // n rows of `columns` channels
  int64_t out_step;
  const void* y;          // n rows of `columns` channels, where slope is SIGN or SELF
  int64_t y_step;
  const float* factor;    // (columns)
  Slope slope;
  void* scratch;
  const void *next_x, *next_y, *next_out;  // where the rows of the call after this begin, to be fetched ahead; may be null
};

// Rows of q, k and v that are read next: a product asks for their cache lines between its multiplications. Heads and tokens lie too far apart
// for a processor to fetch them by itself.
struct Ahead {
  const char* at[3];
  int64_t step[3];  // bytes from one row to the next
  int64_t size;     // bytes of a channel
};
constexpr Ahead NOTHING = {};

struct Arithmetic {
  const char* name;
  int64_t tile;  // most tokens that one call of `product` takes
  // total[c] += sum over the tokens that count of |x_c| (L1), x_c^2 (L2) or x_c (PLAIN); keep may be null: all count
  void (*magnitude)(const void* x, int64_t step, int64_t n, const uint8_t* keep, int64_t width, Norm norm, float* total);
  // m (D rows of pitch(E) columns) += k^T v over n tokens
  void (*product)(const void* k, int64_t k_step, const void* v, int64_t v_step, int64_t n, const uint8_t* keep, int64_t D, int64_t E, void* scratch, float* m, const Ahead& ahead);
  int64_t (*pitch)(int64_t width);                                   // floats in a row of m
  int64_t (*scratch_bytes)(int64_t D, int64_t E);                    // for `product` and `apply`
  int64_t (*packed_bytes)(int64_t rows, int64_t columns);
  void (*pack)(const float* matrix, int64_t rows, int64_t columns, void* packed);  // rows lie `columns` apart
  void (*apply)(const Apply& call);                                  // out = x matrix + slope
  // panel (n rows of pitch(width) float32) = x - high - low, zero where a token does not count; low may be null. Its sums over tokens join
  // `rest`, those of its squares `squares`, where these are not null.
  void (*centre)(const void* x, int64_t step, int64_t n, const uint8_t* keep, int64_t width, const float* high, const float* low, float* panel, float* rest, float* squares);
  void (*panels)(const float* k, const float* v, int64_t n, int64_t D, int64_t E, float* m, const Ahead& ahead);  // as `product`, of panels
  void (*apply_panel)(const Apply& call);                            // as `apply`, x a panel and the matrix float32 with rows of pitch(columns)
  void (*join)(const float* from, int64_t n, bool first, double* to);      // to = from, or to += from
  void (*scale)(const float* from, int64_t n, double by, float* to);       // to = by * from, rounded once
  int64_t width_unit;                                                // D and E must be multiples of it
  void (*begin)();                                                   // on each thread, before and after its calls; may be null
  void (*end)();
};

extern const Arithmetic avx2_f32, avx2_bf16, avx512_f32, avx512_bf16, avx512bf16_bf16, amx_bf16;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace softless
