// The C interface of the native kernels: attention that is a sum over tokens, on a processor.
//
// q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) in float32 or bfloat16, their channels contiguous; every step counts elements. Masks are one
// byte a token, non-zero where it counts. Results of `sums` are contiguous float32.
#pragma once
#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

struct SoftlessTensor {
  void* data;
  int64_t image, head, token;  // steps
};

struct SoftlessCall {
  int64_t B, H, N, M, D, E;
  int32_t bf16;     // 0: float32
  int32_t norm;     // 0 none, 1 l1, 2 l2
  int32_t threads;
  const char* path;  // of softless_paths, from which the first that fits is taken; null: from the fastest
  SoftlessTensor q, k, v, out;
  const uint8_t* mask;        // (B, M) over keys, or null
  const uint8_t* query_mask;  // (B, N), or null
  float* q_size;              // (B, H, D): sums of |q| or of q^2 over the tokens that count
  float* k_size;              // (B, H, D)
  float* context;             // (B, H, D, E): k^T v
  const float* gain;          // (B): factor on the output
  float eps;                  // smallest norm that is divided by
  float still;                // a channel below this share of the head's median norm gets no gradient
  SoftlessTensor grad_out, grad_q, grad_k, grad_v;
  double* moments;       // (B, H (4 D + 2 E + D E)): of q its means and sums of squares about them (H D each), of k, of v (H E each), then k^T v so
  const double* middle;  // (B, H, D): what `centred` takes off q
  const float* offset;   // (B, H, E): what it adds to every output
};

// names of the ways this processor has for a dtype, the fastest first, with commas; "" where there is none
const char* softless_paths(int32_t bf16);

// the way a call would go, or null where none fits its widths
const char* softless_path(const SoftlessCall* call);

// Each returns 0, or 1 where no way fits and 2 where memory ran out; then nothing is written.
int32_t softless_sums(const SoftlessCall* call);      // q_size, k_size, context
int32_t softless_attend(const SoftlessCall* call);    // the sums, then out = q (context gain / |q| / |k|)
int32_t softless_backward(const SoftlessCall* call);  // grad_q, grad_k, grad_v from grad_out and the sums
int32_t softless_spread(const SoftlessCall* call);    // grad_k, grad_v from what arrives at the sums: k_size and context
int32_t softless_moments(const SoftlessCall* call);   // moments
int32_t softless_centred(const SoftlessCall* call);   // out = (q - middle) context + offset
}
#pragma GCC visibility pop
