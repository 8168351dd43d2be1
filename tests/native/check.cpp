// The native kernels alone, without Python: every way of this processor against plain loops in double precision.
//
// Tensors end where their memory ends: every second run in heap blocks of exactly their size, for AddressSanitizer, and every other one
// before a page that must not be touched, for the masked loads and tile loads that no sanitizer sees. What does not count is NaN, what is
// to be written is NaN before, and gaps between tokens must keep what they held.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "../../softless/attention/kernels/native/softless.h"

namespace {

using std::int64_t;
using Numbers = std::vector<double>;

enum Layout { PACKED, BY_HEADS, BY_TOKENS };
enum Masks { ALL, SOME, SOME_KEYS, SOME_QUERIES, NONE };  // NONE: of the last image no token counts

struct Case {
  int64_t B, H, N, M, D, E;
  int norm;
  Masks masks;
  Layout layout;
};

struct Random {
  uint64_t state = 1;
  double uniform() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) / 9007199254740992.0;
  }
  double normal() { return std::sqrt(-2 * std::log(uniform() + 1e-300)) * std::cos(6.283185307179586 * uniform()); }
};

class Block {  // memory whose last byte is the last that may be touched
 public:
  Block(size_t bytes, bool guarded) : bytes_(bytes) {
    if (guarded) {
      const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      room_ = (bytes + page - 1) / page * page + page;
      start_ = static_cast<char*>(mmap(nullptr, room_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      mprotect(start_ + room_ - page, page, PROT_NONE);
      data_ = start_ + room_ - page - bytes;
    } else {
      data_ = static_cast<char*>(malloc(bytes));
    }
    memset(data_, 0xff, bytes);  // NaN in either dtype
  }
  ~Block() {
    if (start_) munmap(start_, room_);
    else free(data_);
  }
  Block(const Block&) = delete;
  char* data() const { return data_; }
  std::string bytes() const { return std::string(data_, bytes_); }

 private:
  size_t bytes_, room_ = 0;
  char *start_ = nullptr, *data_;
};

float rounded(double x, bool bf16) {
  float narrow = static_cast<float>(x);
  if (!bf16) return narrow;
  uint32_t bits;
  memcpy(&bits, &narrow, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  memcpy(&narrow, &bits, 4);
  return narrow;
}

struct Tensor {  // (B, heads, tokens, width)
  std::shared_ptr<Block> block;
  int64_t offset, image, head, token, B, H, T, W;
  bool bf16;

  char* at(int64_t b, int64_t h, int64_t t) const { return block->data() + (offset + b * image + h * head + t * token) * (bf16 ? 2 : 4); }
  SoftlessTensor given() const { return {at(0, 0, 0), image, head, token}; }
  void fill(const Numbers& from) const {
    size_t i = 0;
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = 0; h < H; h++)
        for (int64_t t = 0; t < T; t++)
          for (int64_t c = 0; c < W; c++, i++) {
            const float one = static_cast<float>(from[i]);
            char* place = at(b, h, t) + c * (bf16 ? 2 : 4);
            if (bf16) memcpy(place, reinterpret_cast<const char*>(&one) + 2, 2);
            else memcpy(place, &one, 4);
          }
  }
  Numbers read() const {
    Numbers found;
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = 0; h < H; h++)
        for (int64_t t = 0; t < T; t++)
          for (int64_t c = 0; c < W; c++) {
            float one = 0;
            if (bf16) memcpy(reinterpret_cast<char*>(&one) + 2, at(b, h, t) + 2 * c, 2);
            else memcpy(&one, at(b, h, t) + 4 * c, 4);
            found.push_back(one);
          }
    return found;
  }
  // Between tokens nothing was written.
  bool gaps_kept() const {
    const int64_t size = bf16 ? 2 : 4;
    for (int64_t b = 0; b < B; b++)
      for (int64_t t = 0; t + 1 < T; t++)
        for (const char* p = at(b, H - 1, t) + W * size; p < at(b, 0, t + 1); p++)
          if (*p != '\xff') return false;
    return true;
  }
};

std::vector<Tensor> tensors(Layout layout, int64_t B, int64_t H, std::vector<std::pair<int64_t, int64_t>> sizes, bool bf16, bool guarded) {
  std::vector<Tensor> made;
  const int64_t bytes = bf16 ? 2 : 4, count = static_cast<int64_t>(sizes.size());
  if (layout == PACKED) {
    const auto [T, W] = sizes[0];
    auto block = std::make_shared<Block>(B * T * count * H * W * bytes, guarded);
    for (int64_t i = 0; i < count; i++) made.push_back({block, i * H * W, T * count * H * W, W, count * H * W, B, H, T, W, bf16});
    return made;
  }
  for (const auto& [T, W] : sizes) {
    const int64_t row = layout == BY_TOKENS ? H * W + 3 : W, gap = layout == BY_TOKENS ? 3 : 0;
    const int64_t image = layout == BY_TOKENS ? T * row : H * T * W;
    auto block = std::make_shared<Block>((B * image - gap) * bytes, guarded);
    made.push_back({block, 0, image, layout == BY_TOKENS ? W : T * W, row, B, H, T, W, bf16});
  }
  return made;
}

struct Inputs {
  Numbers q, k, v, grad, gain;
  std::vector<char> mask, query_mask;  // empty: all count
};

Inputs draw(const Case& c, bool bf16, uint64_t seed) {
  Random random{seed};
  Inputs made;
  const auto masked = [&](int64_t tokens, bool wanted) {
    std::vector<char> keep(wanted ? static_cast<size_t>(c.B * tokens) : 0);
    for (size_t i = 0; i < keep.size(); i++) {
      const bool last = static_cast<int64_t>(i) >= (c.B - 1) * tokens;
      keep[i] = c.masks == NONE && last ? 0 : random.uniform() < 0.6 || i % static_cast<size_t>(tokens) == 0;
    }
    return keep;
  };
  made.mask = masked(c.M, c.masks != ALL && c.masks != SOME_QUERIES);
  made.query_mask = masked(c.N, c.masks != ALL && c.masks != SOME_KEYS);
  const auto numbers = [&](int64_t tokens, int64_t width, const std::vector<char>& keep) {
    Numbers found;
    for (int64_t b = 0; b < c.B; b++)
      for (int64_t h = 0; h < c.H; h++)
        for (int64_t t = 0; t < tokens; t++)
          for (int64_t i = 0; i < width; i++) {
            const bool counts = keep.empty() || keep[static_cast<size_t>(b * tokens + t)];
            found.push_back(counts ? rounded(random.normal(), bf16) : std::nan(""));
          }
    return found;
  };
  made.q = numbers(c.N, c.D, made.query_mask);
  made.k = numbers(c.M, c.D, made.mask);
  made.v = numbers(c.M, c.E, made.mask);
  made.grad = numbers(c.N, c.E, made.query_mask);
  if (c.masks == ALL && c.D > 2) {  // of the first head a channel of q is zero and one of k next to nothing: they get no gradient
    for (int64_t t = 0; t < c.N; t++) made.q[static_cast<size_t>(t * c.D + 1)] = 0;
    for (int64_t t = 0; c.norm && t < c.M; t++) made.k[static_cast<size_t>(t * c.D)] = rounded(1e-9 * made.k[static_cast<size_t>(t * c.D)], bf16);
  }
  for (int64_t b = 0; c.norm == 1 && b < c.B; b++) made.gain.push_back(static_cast<float>(0.5 + random.uniform()));
  return made;
}

constexpr double EPS = 1e-12, STILL = 1e-6, OFFSET = 0.5;

struct Results {
  Numbers q_size, k_size, context, out, grad_q, grad_k, grad_v, moments, centred, spread_k, spread_v;
  double terms_q = 0, terms_k = 0;  // what dq and dk are sums of, which may cancel: to which their errors are relative
};

struct Side {  // x (tokens, D) of one head without what does not count, its norms, and x over them
  Numbers x, size, norm, hat;
  std::vector<char> moves;
};

Side side(const double* x, const char* keep, int64_t tokens, int64_t D, int norm) {
  Side made;
  made.x.assign(x, x + tokens * D);
  for (int64_t t = 0; keep && t < tokens; t++)
    if (!keep[t]) std::fill_n(made.x.begin() + t * D, D, 0.0);
  made.size.assign(D, 0.0);
  for (int64_t i = 0; i < tokens * D; i++) made.size[i % D] += norm == 2 ? made.x[i] * made.x[i] : std::fabs(made.x[i]);
  for (double size : made.size) made.norm.push_back(norm == 0 ? 1.0 : norm == 2 ? std::sqrt(size) : size);
  Numbers sorted = made.norm;
  std::sort(sorted.begin(), sorted.end());
  const double least = std::max(STILL * sorted[(D - 1) / 2], EPS);
  for (double one : made.norm) made.moves.push_back(norm == 0 || one > least);
  made.hat = made.x;
  for (int64_t i = 0; i < tokens * D; i++) made.hat[i] /= std::max(made.norm[i % D], EPS);
  return made;
}

// From the gradient of the normalised x to that of x.
Numbers through_norm(const Side& s, const Numbers& slope, int64_t tokens, int64_t D, int norm, double& terms) {
  Numbers along(D, 0.0), found(tokens * D);
  for (int64_t i = 0; i < tokens * D; i++) along[i % D] += slope[i] * s.hat[i];
  for (int64_t i = 0; i < tokens * D; i++) {
    const int64_t d = i % D;
    const double divisor = std::max(s.norm[d], EPS), sign = s.x[i] > 0 ? 1 : s.x[i] < 0 ? -1 : 0;
    const double bend = norm == 0 ? 0 : (norm == 1 ? sign : s.hat[i]) * along[d] / divisor;
    if (!s.moves[d]) continue;
    found[i] = slope[i] / divisor - bend;
    terms += slope[i] / divisor * slope[i] / divisor + bend * bend;
  }
  return found;
}

// A gradient that arrives at the i-th of the sums, which no other entry has a hand in.
double arriving(int64_t i) { return static_cast<double>(i * 37 % 101 - 50) / 64; }

// What arrives at the sums over the keys of one head, carried to k and to v.
void plain_spread(const Case& c, const Numbers& k, const double* v, const char* keep, int64_t head, Results& made) {
  for (int64_t m = 0; m < c.M; m++) {
    const bool counts = !keep || keep[m];
    for (int64_t d = 0; d < c.D; d++) {
      const double x = k[m * c.D + d], slope = c.norm == 2 ? x : c.norm == 1 ? (x > 0) - (x < 0) : 0;
      double sum = slope * arriving(head * c.D + d);
      for (int64_t e = 0; e < c.E; e++) sum += v[m * c.E + e] * arriving((head * c.D + d) * c.E + e);
      made.spread_k.push_back(counts ? sum : 0.0);
    }
    for (int64_t e = 0; e < c.E; e++) {
      double sum = 0;
      for (int64_t d = 0; d < c.D; d++) sum += k[m * c.D + d] * arriving((head * c.D + d) * c.E + e);
      made.spread_v.push_back(counts ? sum : 0.0);
    }
  }
}

// Means, sums of squares about them, and products about them, of one image; and (q - its mean) products.
void plain_moments(const Case& c, const Inputs& in, int64_t b, Results& made) {
  const Numbers* xs[] = {&in.q, &in.k, &in.v};
  Numbers middles[3], squares[3], apart[3];
  for (int i = 0; i < 3; i++) {
    const int64_t T = i ? c.M : c.N, W = i < 2 ? c.D : c.E;
    const std::vector<char>& mask = i ? in.mask : in.query_mask;
    for (int64_t h = 0; h < c.H; h++) {
      const double* x = &(*xs[i])[(b * c.H + h) * T * W];
      Numbers middle(W), square(W);
      double count = 0;
      const auto counts = [&](int64_t t) { return mask.empty() || mask[b * T + t]; };
      for (int64_t t = 0; t < T; t++) count += counts(t);
      for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; counts(t) && j < W; j++) middle[j] += x[t * W + j] / count;
      for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < W; j++) {
          apart[i].push_back(counts(t) ? x[t * W + j] - middle[j] : 0.0);
          square[j] += apart[i].back() * apart[i].back();
        }
      middles[i].insert(middles[i].end(), middle.begin(), middle.end());
      squares[i].insert(squares[i].end(), square.begin(), square.end());
    }
    made.moments.insert(made.moments.end(), middles[i].begin(), middles[i].end());
    made.moments.insert(made.moments.end(), squares[i].begin(), squares[i].end());
  }
  for (int64_t h = 0; h < c.H; h++) {
    Numbers products(c.D * c.E);
    for (int64_t t = 0; t < c.M; t++)
      for (int64_t i = 0; i < c.D * c.E; i++) products[i] += apart[1][(h * c.M + t) * c.D + i / c.E] * apart[2][(h * c.M + t) * c.E + i % c.E];
    made.moments.insert(made.moments.end(), products.begin(), products.end());
    for (int64_t t = 0; t < c.N; t++)
      for (int64_t e = 0; e < c.E; e++) {
        const bool counts = in.query_mask.empty() || in.query_mask[b * c.N + t];
        double sum = counts ? OFFSET : 0;
        for (int64_t d = 0; d < c.D; d++) sum += apart[0][(h * c.N + t) * c.D + d] * products[d * c.E + e];
        made.centred.push_back(sum);
      }
  }
}

// o = gain q^ (k^^T v) and its gradients, by way of the normalised q and k.
Results plainly(const Case& c, const Inputs& in) {
  Results made;
  const auto append = [](Numbers& to, const Numbers& from) { to.insert(to.end(), from.begin(), from.end()); };
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t h = 0; h < c.H; h++) {
      const int64_t head = b * c.H + h;
      const char* keep_q = in.query_mask.empty() ? nullptr : &in.query_mask[b * c.N];
      const char* keep_k = in.mask.empty() ? nullptr : &in.mask[b * c.M];
      const Side q = side(&in.q[head * c.N * c.D], keep_q, c.N, c.D, c.norm), k = side(&in.k[head * c.M * c.D], keep_k, c.M, c.D, c.norm);
      const double gain = in.gain.empty() ? 1.0 : in.gain[b];
      Numbers context(c.D * c.E), hat_context(c.D * c.E), outer(c.D * c.E);  // k^T v, k^^T v, q^^T do
      Numbers out(c.N * c.E), slope_q(c.N * c.D), slope_k(c.M * c.D), slope_v(c.M * c.E);
      const double *v = &in.v[head * c.M * c.E], *grad = &in.grad[head * c.N * c.E];
      for (int64_t m = 0; m < c.M; m++)
        for (int64_t d = 0; (!keep_k || keep_k[m]) && d < c.D; d++)
          for (int64_t e = 0; e < c.E; e++) {
            context[d * c.E + e] += k.x[m * c.D + d] * v[m * c.E + e];
            hat_context[d * c.E + e] += k.hat[m * c.D + d] * v[m * c.E + e];
          }
      for (int64_t n = 0; n < c.N; n++)
        for (int64_t d = 0; (!keep_q || keep_q[n]) && d < c.D; d++)
          for (int64_t e = 0; e < c.E; e++) {
            out[n * c.E + e] += gain * q.hat[n * c.D + d] * hat_context[d * c.E + e];
            outer[d * c.E + e] += gain * q.hat[n * c.D + d] * grad[n * c.E + e];
            slope_q[n * c.D + d] += gain * hat_context[d * c.E + e] * grad[n * c.E + e];
          }
      for (int64_t m = 0; m < c.M; m++)
        for (int64_t d = 0; (!keep_k || keep_k[m]) && d < c.D; d++)
          for (int64_t e = 0; e < c.E; e++) {
            slope_k[m * c.D + d] += outer[d * c.E + e] * v[m * c.E + e];
            slope_v[m * c.E + e] += outer[d * c.E + e] * k.hat[m * c.D + d];
          }
      append(made.q_size, q.size);
      append(made.k_size, k.size);
      append(made.context, context);
      append(made.out, out);
      append(made.grad_q, through_norm(q, slope_q, c.N, c.D, c.norm, made.terms_q));
      append(made.grad_k, through_norm(k, slope_k, c.M, c.D, c.norm, made.terms_k));
      append(made.grad_v, slope_v);
      plain_spread(c, k.x, v, keep_k, head, made);
    }
  for (int64_t b = 0; b < c.B; b++) plain_moments(c, in, b, made);
  made.terms_q = std::sqrt(made.terms_q);
  made.terms_k = std::sqrt(made.terms_k);
  return made;
}

double length(const Numbers& x) {
  double sum = 0;
  for (double one : x) sum += one * one;
  return std::sqrt(sum);
}

int failures = 0;
std::set<std::string> taken;      // ways that were taken
std::vector<std::string> wanted;  // ways to take; empty: all of this processor
std::string now;  // what is being done, for reports

void report(const std::string& what) {
  failures++;
  printf("%s: %s\n", now.c_str(), what.c_str());
}

void check(bool right, const char* what) {
  if (!right) report(what);
}

// relative to the larger of what is expected and what it is a sum of
void near(const Numbers& found, const Numbers& expected, double bound, const char* what, double terms = 0) {
  Numbers difference;
  for (size_t i = 0; i < expected.size(); i++) difference.push_back(found[i] - expected[i]);
  const double size = std::max(length(expected), terms), error = length(difference);
  if (!(error <= bound * size)) {
    std::ostringstream said;
    said << what << " is off by " << error << " of " << size;
    report(said.str());
  }
}

struct Run {  // one call of each entry, and what it wrote
  std::shared_ptr<Block> q_size, k_size, context, moments;
  std::vector<Tensor> written;  // out, dq, dk, dv, centred, dk and dv of the sums
  std::string bytes;
};

Numbers floats(const Block& block) {
  const std::string bytes = block.bytes();
  Numbers found;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    float one;
    memcpy(&one, &bytes[i], 4);
    found.push_back(one);
  }
  return found;
}

Numbers doubles(const Block& block) {
  const std::string bytes = block.bytes();
  Numbers found(bytes.size() / 8);
  memcpy(found.data(), bytes.data(), bytes.size());
  return found;
}

template <class T, class From> std::shared_ptr<Block> copied(const From& from, bool guarded) {
  auto made = std::make_shared<Block>(std::max<size_t>(from.size(), 1) * sizeof(T), guarded);
  for (size_t i = 0; i < from.size(); i++) {
    const T one = static_cast<T>(from[i]);
    memcpy(made->data() + i * sizeof(T), &one, sizeof(T));
  }
  return made;
}

Run run(const Case& c, const Inputs& in, bool bf16, const char* path, int threads, bool guarded) {
  const auto given = tensors(c.layout, c.B, c.H, {{c.N, c.D}, {c.M, c.D}, {c.M, c.E}}, bf16, guarded);
  const auto slopes = tensors(c.layout, c.B, c.H, {{c.N, c.D}, {c.M, c.D}, {c.M, c.E}}, bf16, guarded);
  const auto spread = tensors(c.layout, c.B, c.H, {{c.N, c.D}, {c.M, c.D}, {c.M, c.E}}, bf16, guarded);
  const auto beside = tensors(c.layout == PACKED ? BY_TOKENS : c.layout, c.B, c.H, {{c.N, c.E}, {c.N, c.E}, {c.N, c.E}}, bf16, guarded);
  const Numbers* from[] = {&in.q, &in.k, &in.v};
  for (int i = 0; i < 3; i++) given[i].fill(*from[i]);
  beside[1].fill(in.grad);
  const auto mask = copied<uint8_t>(in.mask, guarded), query_mask = copied<uint8_t>(in.query_mask, guarded);
  const auto gain = copied<float>(in.gain, guarded);
  const size_t heads = static_cast<size_t>(c.B * c.H);
  Run made;
  made.q_size = std::make_shared<Block>(heads * c.D * 4, guarded);
  made.k_size = std::make_shared<Block>(heads * c.D * 4, guarded);
  made.context = std::make_shared<Block>(heads * c.D * c.E * 4, guarded);
  const size_t moments = heads * static_cast<size_t>(4 * c.D + 2 * c.E + c.D * c.E);
  made.moments = std::make_shared<Block>(moments * 8, guarded);
  made.written = {beside[0], slopes[0], slopes[1], slopes[2], beside[2], spread[1], spread[2]};

  SoftlessCall call{};
  call.B = c.B, call.H = c.H, call.N = c.N, call.M = c.M, call.D = c.D, call.E = c.E;
  call.bf16 = bf16, call.norm = c.norm, call.threads = threads, call.path = path;
  call.q = given[0].given(), call.k = given[1].given(), call.v = given[2].given(), call.out = beside[0].given();
  if (!in.mask.empty()) call.mask = reinterpret_cast<uint8_t*>(mask->data());
  if (!in.query_mask.empty()) call.query_mask = reinterpret_cast<uint8_t*>(query_mask->data());
  if (!in.gain.empty()) call.gain = reinterpret_cast<float*>(gain->data());
  call.q_size = reinterpret_cast<float*>(made.q_size->data());
  call.k_size = reinterpret_cast<float*>(made.k_size->data());
  call.context = reinterpret_cast<float*>(made.context->data());
  call.eps = static_cast<float>(EPS), call.still = static_cast<float>(STILL);
  call.grad_out = beside[1].given(), call.grad_q = slopes[0].given(), call.grad_k = slopes[1].given(), call.grad_v = slopes[2].given();

  check(softless_sums(&call) == 0, "sums refuses");
  const std::string sums = made.context->bytes();
  check(softless_attend(&call) == 0, "attend refuses");
  check(sums == made.context->bytes(), "other sums in attend");
  check(softless_backward(&call) == 0, "backward refuses");

  Numbers at_sizes(heads * c.D), at_context(heads * c.D * c.E);
  for (size_t i = 0; i < at_sizes.size(); i++) at_sizes[i] = arriving(static_cast<int64_t>(i));
  for (size_t i = 0; i < at_context.size(); i++) at_context[i] = arriving(static_cast<int64_t>(i));
  const auto slope_of_sizes = copied<float>(at_sizes, guarded), slope_of_context = copied<float>(at_context, guarded);
  SoftlessCall spreading = call;
  spreading.k_size = reinterpret_cast<float*>(slope_of_sizes->data());
  spreading.context = reinterpret_cast<float*>(slope_of_context->data());
  spreading.grad_k = spread[1].given(), spreading.grad_v = spread[2].given();
  check(softless_spread(&spreading) == 0, "spread refuses");

  call.moments = reinterpret_cast<double*>(made.moments->data());
  check(softless_moments(&call) == 0, "moments refuses");
  const size_t of_image = moments / static_cast<size_t>(c.B), squared = 2 * static_cast<size_t>(c.H * (2 * c.D + c.E));
  Numbers middles, products;
  for (int64_t b = 0; b < c.B; b++) {
    const double* image = call.moments + static_cast<size_t>(b) * of_image;
    middles.insert(middles.end(), image, image + c.H * c.D);
    products.insert(products.end(), image + squared, image + of_image);
  }
  const auto middle = copied<double>(middles, guarded);
  const auto matrix = copied<float>(products, guarded), offset = copied<float>(Numbers(heads * c.E, OFFSET), guarded);
  SoftlessCall reading = call;
  reading.middle = reinterpret_cast<double*>(middle->data());
  reading.context = reinterpret_cast<float*>(matrix->data());
  reading.offset = reinterpret_cast<float*>(offset->data());
  reading.out = beside[2].given();
  check(softless_centred(&reading) == 0, "centred refuses");
  for (const Tensor& one : made.written)
    if (&one == &made.written[0] || &one == &made.written[4] || c.layout != PACKED) check(one.gaps_kept(), "wrote between tokens");
  made.bytes = made.context->bytes();
  if (c.norm) made.bytes += made.q_size->bytes() + made.k_size->bytes();
  for (const Tensor& one : made.written) made.bytes += one.block->bytes();
  return made;
}

void compare(const Case& c, const Run& found, const Results& expected, bool bf16) {
  const double sums = 2e-6, bound = bf16 ? 6e-3 : 2e-6;
  if (c.norm) {
    near(floats(*found.q_size), expected.q_size, sums, "|q|");
    near(floats(*found.k_size), expected.k_size, sums, "|k|");
  }
  near(floats(*found.context), expected.context, sums, "k^T v");
  near(found.written[0].read(), expected.out, bound, "the output");
  near(found.written[1].read(), expected.grad_q, bound, "dq", expected.terms_q);
  near(found.written[2].read(), expected.grad_k, bound, "dk", expected.terms_k);
  near(found.written[3].read(), expected.grad_v, bound, "dv");
  near(doubles(*found.moments), expected.moments, sums, "the moments");
  near(found.written[4].read(), expected.centred, bound, "the centred reading");
  near(found.written[5].read(), expected.spread_k, bound, "dk of the sums");
  near(found.written[6].read(), expected.spread_v, bound, "dv of the sums");
}

// The first image alone.
Inputs first_of(const Case& c, const Inputs& in) {
  Inputs made = in;
  for (Numbers* x : {&made.q, &made.k, &made.v, &made.grad}) x->resize(x->size() / c.B);
  if (!in.gain.empty()) made.gain.resize(1);
  for (std::vector<char>* keep : {&made.mask, &made.query_mask}) keep->resize(keep->size() / c.B);
  return made;
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> found;
  std::istringstream in(names);
  for (std::string one; std::getline(in, one, ',');) found.push_back(one);
  return found;
}

void check_case(const Case& c, bool bf16, uint64_t seed) {
  std::vector<std::string> paths = split(softless_paths(bf16));
  const auto unwanted = [](const std::string& path) { return !wanted.empty() && std::find(wanted.begin(), wanted.end(), path) == wanted.end(); };
  paths.erase(std::remove_if(paths.begin(), paths.end(), unwanted), paths.end());
  if (paths.empty()) return;
  const Inputs in = draw(c, bf16, seed);
  const Results expected = plainly(c, in);
  for (const std::string& path : paths) {
    taken.insert(path);
    std::ostringstream said;
    said << path << (bf16 ? " bf16" : " f32") << " B" << c.B << " H" << c.H << " N" << c.N << " M" << c.M << " D" << c.D << " E" << c.E
         << " norm " << c.norm << " masks " << c.masks << " layout " << c.layout;
    now = said.str();
    const Run one = run(c, in, bf16, path.c_str(), 1, false);
    compare(c, one, expected, bf16);
    for (int threads : {2, 3}) check(run(c, in, bf16, path.c_str(), threads, threads == 2).bytes == one.bytes, "other bits with more threads");
    if (c.B == 1) continue;
    Case alone = c;
    alone.B = 1;
    const Run first = run(alone, first_of(c, in), bf16, path.c_str(), 2, true);
    for (size_t i = 0; i < first.written.size(); i++) {
      Numbers whole = one.written[i].read(), part = first.written[i].read();
      check(std::equal(part.begin(), part.end(), whole.begin()), "other bits beside another image");
    }
  }
}

std::vector<Case> cases() {
  std::vector<Case> made;
  int turn = 0;
  const auto add = [&](int64_t B, int64_t H, int64_t N, int64_t M, int64_t D, int64_t E) {
    const bool one_buffer = N == M && D == E;
    Layout layout = static_cast<Layout>(turn % 3);
    if (layout == PACKED && !one_buffer) layout = BY_HEADS;
    made.push_back({B, H, N, M, D, E, (turn + turn / 3) % 3, static_cast<Masks>((turn + turn / 5) % 5), layout});
    if (one_buffer && made.back().masks != ALL && layout == PACKED) made.back().masks = static_cast<Masks>(turn % 2 ? SOME : NONE);
    turn++;
  };
  for (int64_t D : {1, 2, 7, 9, 16, 20, 48, 64, 65, 96})
    for (int64_t N : {1, 31, 49, 197}) add(2, D > 60 ? 2 : 3, N, N, D, D);
  for (int64_t N : {49, 197}) add(1, 1, N, N, 384, 384);
  for (int64_t D : {9, 16, 48}) add(2, 2, 600, 600, D, D);
  for (int64_t D : {7, 32}) add(2, 1, 3000, 3000, D, D);
  const std::pair<int64_t, int64_t> lengths[] = {{31, 49}, {197, 33}, {1, 600}, {600, 1}}, widths[] = {{7, 9}, {16, 48}, {64, 65}, {96, 20}, {1, 64}, {32, 16}};
  for (const auto& [N, M] : lengths)
    for (const auto& [D, E] : widths) add(2, 2, N, M, D, E);
  return made;
}

}  // namespace

int main(int count, char** names) {
  for (int i = 1; i < count; i++) wanted.push_back(names[i]);
  uint64_t seed = 1;
  int64_t done = 0;
  for (const Case& c : cases())
    for (bool bf16 : {false, true}) check_case(c, bf16, seed++), done++;
  SoftlessCall none{};
  none.D = none.E = 8;
  none.path = "no such way";
  check(softless_attend(&none) == 1 && !softless_path(&none), "a way that does not exist is taken");
  std::string ways;
  for (const std::string& one : taken) ways += " " + one;
  printf("%lld cases, %d wrong, by%s\n", static_cast<long long>(done), failures, ways.c_str());
  return failures ? 1 : 0;
}
