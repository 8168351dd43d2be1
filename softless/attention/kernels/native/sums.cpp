#include <cmath>
#include <limits>
#include <string>

#include "driver.h"

namespace softless {
namespace {

// |q| and |k| of all heads, then k^T v, whose rows have a pitch in float32.
class Sums {
 public:
  Sums(const SoftlessCall& call, const Arithmetic& way)
      : call_(call), way_(way), sizes_(call.norm == NONE ? 0 : call.H * call.D), rows_(call.H * call.D), pitch_(way.pitch(call.E)) {}

  int64_t totals() const { return 2 * sizes_ + rows_ * call_.E; }
  int64_t group() const { return 2 * sizes_ + rows_ * pitch_; }
  int64_t scratch() const { return way_.scratch_bytes(call_.D, call_.E); }

  void add(int64_t image, int64_t first, int64_t last, void* scratch, float* group) const {
    const int64_t size = call_.bf16 ? 2 : 4;
    const Place q{call_.q, size}, k{call_.k, size}, v{call_.v, size};
    const Norm norm = static_cast<Norm>(call_.norm);
    float *q_size = group, *k_size = group + sizes_, *context = group + 2 * sizes_;
    for (int64_t t = first; t < last; t += way_.tile) {
      const int64_t end = least(last, t + way_.tile), queries = least(end, call_.N) - t, keys = least(end, call_.M) - t;
      const uint8_t* query_mask = call_.query_mask ? call_.query_mask + image * call_.N + t : nullptr;
      const uint8_t* mask = call_.mask ? call_.mask + image * call_.M + t : nullptr;
      for (int64_t h = 0; h < call_.H; h++) {
        if (norm != NONE && queries > 0) way_.magnitude(q.at(image, h, t), call_.q.token, queries, query_mask, call_.D, norm, q_size + h * call_.D);
        if (keys <= 0) continue;
        if (norm != NONE) way_.magnitude(k.at(image, h, t), call_.k.token, keys, mask, call_.D, norm, k_size + h * call_.D);
        const Ahead ahead = after(call_, image, h, t, end);
        way_.product(k.at(image, h, t), call_.k.token, v.at(image, h, t), call_.v.token, keys, mask, call_.D, call_.E, scratch, context + h * call_.D * pitch_,
                     ahead);
      }
    }
  }

  // Columns beyond the width become zero again too: NaN times their zero is NaN.
  void close(float* group, double* totals, bool first) const {
    way_.join(group, 2 * sizes_, first, totals);
    const float* context = group + 2 * sizes_;
    double* to = totals + 2 * sizes_;
    if (pitch_ == call_.E) way_.join(context, rows_ * call_.E, first, to);
    else
      for (int64_t row = 0; row < rows_; row++) way_.join(context + row * pitch_, call_.E, first, to + row * call_.E);
    std::fill_n(group, this->group(), 0.0f);
  }

  void write(int64_t image, const double* totals) const {
    const auto narrow = [](const double* from, int64_t n, float* to) {
      for (int64_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]);
    };
    if (sizes_) {
      narrow(totals, sizes_, call_.q_size + image * sizes_);
      narrow(totals + sizes_, sizes_, call_.k_size + image * sizes_);
    }
    narrow(totals + 2 * sizes_, rows_ * call_.E, call_.context + image * rows_ * call_.E);
  }

 private:
  const SoftlessCall& call_;
  const Arithmetic& way_;
  const int64_t sizes_, rows_, pitch_;
};

void sums(const SoftlessCall& call, const Arithmetic& way) { sweep(call, way, Sums(call, way)); }

double norm_of(const SoftlessCall& call, float size) { return call.norm == L2 ? std::sqrt(static_cast<double>(size)) : size; }

// What a channel is divided by. A sum that overflowed is NaN: a quotient by infinity would be 0, an answer that looks right.
double divisor(const SoftlessCall& call, float size) {
  if (std::isinf(size)) return std::numeric_limits<double>::quiet_NaN();
  return std::max(norm_of(call, size), static_cast<double>(call.eps));
}

// what a channel's row of the context is multiplied by: gain / (|q| |k|)
double factor(const SoftlessCall& call, int64_t image, int64_t channel) {
  const double gain = call.gain ? call.gain[image] : 1.0;
  if (call.norm == NONE) return gain;
  const int64_t at = image * call.H * call.D + channel;
  return gain / (divisor(call, call.q_size[at]) * divisor(call, call.k_size[at]));
}

struct Matrices {  // one packed matrix per image and head
  Buffer<char> data;
  int64_t size;
  const void* of(int64_t image, int64_t head, int64_t heads) const { return data.get() + (image * heads + head) * size; }
};

struct Product {  // rows x columns, filled by (image, head, out)
  int64_t rows, columns;
  template <class Fill> Matrices pack(const SoftlessCall& call, const Arithmetic& way, const Fill& fill) const {
    const int64_t size = round_up(way.packed_bytes(rows, columns), 64);
    Matrices made{buffer<char>(call.B * call.H * size), size};
    share(threads_for(call, call.B * call.H), way, [&](int thread, int of) {
      const Room<float> plain = room<float, 2>(rows * columns);  // the rooms of `sweep` are left as zeros
      for (int64_t item = call.B * call.H * thread / of; item < call.B * call.H * (thread + 1) / of; item++) {
        fill(item / call.H, item % call.H, plain.get());
        way.pack(plain.get(), rows, columns, made.data.get() + item * size);
      }
    });
    return made;
  }
};

struct Reading {  // out = x matrix + slope, for all tokens of all images
  const SoftlessTensor &x, &out;
  const Matrices& matrices;
  int64_t tokens, rows, columns;
  const uint8_t* keep;  // (B, tokens) or null
  const SoftlessTensor* y;
  const float* factor;  // (B, H, columns)
  Slope slope;
};

void read(const SoftlessCall& call, const Arithmetic& way, const std::vector<Reading>& readings) {
  constexpr int64_t BLOCK = 64;
  const int64_t size = call.bf16 ? 2 : 4;
  int64_t most = 0;
  for (const Reading& one : readings) most = std::max(most, (one.tokens + BLOCK - 1) / BLOCK);
  const int threads = threads_for(call, call.B * most);
  // Few tokens divide evenly too; but not below the 16 of a tile, which would go another way, to other bits, beside more images.
  const int64_t step = call.B * most >= 4 * threads ? BLOCK : 16, blocks = (most * BLOCK + step - 1) / step;
  share(threads, way, [&](int thread, int of) {
    const Room<char> scratch = room<char>(way.scratch_bytes(call.D, call.E));
    for (int64_t item = call.B * blocks * thread / of; item < call.B * blocks * (thread + 1) / of; item++) {
      const int64_t image = item / blocks, first = item % blocks * step;
      for (const Reading& one : readings) {
        const int64_t n = least(step, one.tokens - first);
        if (n <= 0) continue;
        for (int64_t head = 0; head < call.H; head++) {
          const int64_t next = (head + 1) % call.H, then = next ? first : first + step;
          const auto here = [&](const SoftlessTensor* x) { return x ? Place{*x, size}.at(image, head, first) : nullptr; };
          const auto ahead = [&](const SoftlessTensor* x) { return x ? Place{*x, size}.at(image, next, then) : nullptr; };
          way.apply({here(&one.x), one.x.token, n, one.matrices.of(image, head, call.H), one.rows, one.columns, here(&one.out), one.out.token, here(one.y),
                     one.y ? one.y->token : 0, one.factor ? one.factor + (image * call.H + head) * one.columns : nullptr, one.slope, scratch.get(),
                     ahead(&one.x), ahead(one.y), ahead(&one.out)});
          if (one.keep) blank(one.out, size, image, head, first, n, one.columns, one.keep + image * one.tokens);
        }
      }
    }
  });
}

void attend(const SoftlessCall& call, const Arithmetic& way) {
  sums(call, way);
  const Matrices matrices = Product{call.D, call.E}.pack(call, way, [&](int64_t image, int64_t head, float* out) {
    const float* context = call.context + (image * call.H + head) * call.D * call.E;
    for (int64_t d = 0; d < call.D; d++) way.scale(context + d * call.E, call.E, factor(call, image, head * call.D + d), out + d * call.E);
  });
  read(call, way, {{call.q, call.out, matrices, call.N, call.D, call.E, call.query_mask, nullptr, nullptr, FLAT}});
}

// Which channels of a head get a gradient: those whose norm exceeds a share of the head's median norm, and eps at its smallest.
std::vector<char> moving(const SoftlessCall& call, const float* sizes) {
  std::vector<char> moves(static_cast<size_t>(call.D), 1);
  if (call.norm == NONE) return moves;
  std::vector<double> norms(static_cast<size_t>(call.D));
  for (int64_t d = 0; d < call.D; d++) norms[static_cast<size_t>(d)] = norm_of(call, sizes[d]);
  std::vector<double> sorted = norms;
  const auto middle = sorted.begin() + (call.D - 1) / 2;
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double least_norm = std::max(static_cast<double>(call.still) * *middle, 1e-12);
  for (size_t d = 0; d < moves.size(); d++) moves[d] = norms[d] > least_norm;
  return moves;
}

// With A = r C, C = k^T v, r_d = gain / (|q_d| |k_d|), o = q A and dA = q^T do:
//   dq = do A^T + slope_q,  dk = v (r dA)^T + slope_k,  dv = k (r dA),  slope_x = d|x| * sign(x) (l1) or d|x| / |x| * x (l2),
//   d|x_d| = -(sum_e dA_de C_de) r_d / |x_d|, zero where |x_d| is below eps.
void backward(const SoftlessCall& call, const Arithmetic& way) {
  const int64_t D = call.D, E = call.E, heads = call.B * call.H;
  auto slope_of_a = buffer<float>(heads * D * E);
  SoftlessCall outer = call;  // dA is the context of (q, do) over the queries
  outer.k = call.q;
  outer.v = call.grad_out;
  outer.M = call.N;
  outer.mask = call.query_mask;
  outer.norm = NONE;
  outer.context = slope_of_a.get();
  sums(outer, way);

  auto slope_q = buffer<float>(heads * D), slope_k = buffer<float>(heads * D);
  std::vector<char> moves_q(static_cast<size_t>(heads * D)), moves_k(static_cast<size_t>(heads * D));
  for (int64_t head = 0; head < heads; head++) {
    const float *q_size = call.q_size + head * D, *k_size = call.k_size + head * D;
    const std::vector<char> q_moves = moving(call, q_size), k_moves = moving(call, k_size);
    std::copy(q_moves.begin(), q_moves.end(), moves_q.begin() + head * D);
    std::copy(k_moves.begin(), k_moves.end(), moves_k.begin() + head * D);
    for (int64_t d = 0; d < D; d++) {
      const int64_t at = head * D + d;
      slope_q[at] = slope_k[at] = 0;
      if (call.norm == NONE) continue;
      double along = 0;
      for (int64_t e = 0; e < E; e++) along += static_cast<double>(slope_of_a[at * E + e]) * call.context[at * E + e];
      along *= -factor(call, head / call.H, at - head / call.H * call.H * D);
      const double q_norm = norm_of(call, q_size[d]), k_norm = norm_of(call, k_size[d]);
      const auto slope = [&](double norm, bool moves) {
        if (!moves || norm <= call.eps) return 0.0f;
        return static_cast<float>(along / (call.norm == L2 ? norm * norm : norm));
      };
      slope_q[at] = slope(q_norm, q_moves[static_cast<size_t>(d)]);
      slope_k[at] = slope(k_norm, k_moves[static_cast<size_t>(d)]);
    }
  }

  const auto turned = [&](const float* from, const std::vector<char>& moves) {  // (r from)^T, still channels left out
    return [&call, &moves, from, D, E](int64_t image, int64_t head, float* out) {
      for (int64_t d = 0; d < D; d++) {
        const int64_t at = (image * call.H + head) * D + d;
        const double by = moves[static_cast<size_t>(at)] ? factor(call, image, head * D + d) : 0.0;
        for (int64_t e = 0; e < E; e++) out[e * D + d] = static_cast<float>(by * from[at * E + e]);
      }
    };
  };
  const Matrices to_q = Product{E, D}.pack(call, way, turned(call.context, moves_q));
  const Matrices to_k = Product{E, D}.pack(call, way, turned(slope_of_a.get(), moves_k));
  const Matrices to_v = Product{D, E}.pack(call, way, [&](int64_t image, int64_t head, float* out) {
    for (int64_t d = 0; d < D; d++) {
      const double by = factor(call, image, head * D + d);
      for (int64_t e = 0; e < E; e++) *out++ = static_cast<float>(by * slope_of_a[((image * call.H + head) * D + d) * E + e]);
    }
  });
  const Slope slope = call.norm == L1 ? SIGN : call.norm == L2 ? SELF : FLAT;
  read(call, way,
       {{call.grad_out, call.grad_q, to_q, call.N, E, D, call.query_mask, &call.q, slope_q.get(), slope},
        {call.v, call.grad_k, to_k, call.M, E, D, call.mask, &call.k, slope_k.get(), slope},
        {call.k, call.grad_v, to_v, call.M, D, E, call.mask, nullptr, nullptr, FLAT}});
}

// What arrives at the sums goes back to the tokens: context and k_size hold the gradients of k^T v and of the sums over k.
//   dk = v context^T + slope,  dv = k context,  slope = k_size * sign(k) (l1) or k_size * k (l2)
void spread(const SoftlessCall& call, const Arithmetic& way) {
  const int64_t D = call.D, E = call.E;
  const auto of = [&](int64_t image, int64_t head) { return call.context + (image * call.H + head) * D * E; };
  const Matrices to_k = Product{E, D}.pack(call, way, [&](int64_t image, int64_t head, float* out) {
    for (int64_t d = 0; d < D; d++)
      for (int64_t e = 0; e < E; e++) out[e * D + d] = of(image, head)[d * E + e];
  });
  const Matrices to_v = Product{D, E}.pack(call, way, [&](int64_t image, int64_t head, float* out) { std::copy_n(of(image, head), D * E, out); });
  const Slope slope = call.norm == L1 ? SIGN : call.norm == L2 ? SELF : FLAT;
  read(call, way,
       {{call.v, call.grad_k, to_k, call.M, E, D, call.mask, slope == FLAT ? nullptr : &call.k, slope == FLAT ? nullptr : call.k_size, slope},
        {call.k, call.grad_v, to_v, call.M, D, E, call.mask, nullptr, nullptr, FLAT}});
}

}  // namespace
}  // namespace softless

extern "C" {

const char* softless_paths(int32_t bf16) {
  static const auto named = [](bool half) {
    std::string names;
    for (const softless::Arithmetic* const* one = softless::arithmetics(half); *one; one++) names += (names.empty() ? "" : ",") + std::string((*one)->name);
    return names;
  };
  static const std::string wide = named(false), narrow = named(true);
  return bf16 ? narrow.c_str() : wide.c_str();
}

const char* softless_path(const SoftlessCall* call) {
  const softless::Arithmetic* way = softless::choose(call->bf16, call->path, call->D, call->E);
  return way ? way->name : nullptr;
}

int32_t softless_sums(const SoftlessCall* call) { return softless::guarded(call, softless::sums); }
int32_t softless_attend(const SoftlessCall* call) { return softless::guarded(call, softless::attend); }
int32_t softless_backward(const SoftlessCall* call) { return softless::guarded(call, softless::backward); }
int32_t softless_spread(const SoftlessCall* call) { return softless::guarded(call, softless::spread); }
}
