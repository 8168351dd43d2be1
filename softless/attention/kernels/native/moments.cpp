// Means, sums of squares and products about the means, for sequence normalisation; they merge however large the means are beside the spread.
//
// In a group of tokens everything is taken about the mean of its first few, in float32; what that is off, the sums of the rest say. Those few are
// part of the group, so its spread is never small beside what they are off. Groups join in double by the formulas of Chan, Golub and LeVeque (1979).
#include "driver.h"

namespace softless {
namespace {

constexpr int64_t PANEL = 64;  // tokens that are centred at a time

// The numbers of queries and keys; of q, k and v in this order the means and sums of squares of all heads; the products of k and v; room for how
// far a group's means are off.
class Moments {
 public:
  Moments(const SoftlessCall& call, const Arithmetic& way) : call_(call), way_(way), pitch_(way.pitch(call.E)) {}

  int64_t moments() const { return 2 * side(3) + rows() * call_.E; }
  int64_t totals() const { return COUNTS + moments() + side(3); }
  int64_t group() const { return COUNTS + 3 * side(3) + rows() * pitch_; }
  int64_t scratch() const { return PANEL * (way_.pitch(call_.D) + pitch_) * static_cast<int64_t>(sizeof(float)); }

  void add(int64_t image, int64_t first, int64_t last, void* scratch, float* group) const {
    const int64_t size = call_.bf16 ? 2 : 4;
    const SoftlessTensor* tensors[] = {&call_.q, &call_.k, &call_.v};
    float *middle = group + COUNTS, *rest = middle + side(3), *squares = rest + side(3), *products = squares + side(3);
    float* panels[] = {static_cast<float*>(scratch), static_cast<float*>(scratch), static_cast<float*>(scratch) + PANEL * way_.pitch(call_.D)};
    for (int i = 0; i < 3; i++) {
      const int64_t n = tokens_of(i, first, last);
      const uint8_t* keep = mask_of(i, image, first);
      const int64_t count = keep ? n - std::count(keep, keep + n, uint8_t{0}) : n, some = keep ? n : least(n, PANEL), counted = keep ? count : some;
      group[i > 0] = static_cast<float>(count);
      for (int64_t h = 0; n && h < call_.H; h++) way_.magnitude(Place{*tensors[i], size}.at(image, h, first), tensors[i]->token, some, keep, width(i), PLAIN, middle + side(i) + h * width(i));
      for (int64_t c = side(i); counted && c < side(i + 1); c++) middle[c] /= static_cast<float>(counted);
    }
    for (int64_t t = first; t < last; t += PANEL)
      for (int64_t h = 0; h < call_.H; h++) {
        const int64_t end = least(last, t + PANEL), keys = tokens_of(1, t, end);
        for (int i = 0; i < 3; i++) {  // q's panel is read by nobody: k's takes its place
          const int64_t c = side(i) + h * width(i), n = tokens_of(i, t, end);
          if (n) way_.centre(Place{*tensors[i], size}.at(image, h, t), tensors[i]->token, n, mask_of(i, image, t), width(i), middle + c, nullptr, panels[i], rest + c, squares + c);
        }
        const Ahead ahead = after(call_, image, h, t, end);
        if (keys) way_.panels(panels[1], panels[2], keys, call_.D, call_.E, products + h * call_.D * pitch_, ahead);
      }
  }

  void close(float* group, double* totals, bool first) const {
    if (first) std::fill_n(totals, this->totals(), 0.0);
    const float *middle = group + COUNTS, *rest = middle + side(3), *squares = rest + side(3), *products = squares + side(3);
    double *own = totals + COUNTS, *own_products = own + 2 * side(3), *apart = own + moments();
    for (int i = 0; i < 3; i++)
      for (int64_t c = side(i); c < side(i + 1); c++) apart[c] = middle[c] + rest[c] / static_cast<double>(group[i > 0]) - own[side(i) + c];
    if (group[1] > 0) {
      const double more = group[1], weight = totals[1] * more / (totals[1] + more);
      for (int64_t row = 0; row < rows(); row++) {
        const float *from = products + row * pitch_, *rest_v = rest + side(2) + row / call_.D * call_.E;
        const double off = rest[side(1) + row] / more, far = weight * apart[side(1) + row], *apart_v = apart + side(2) + row / call_.D * call_.E;
        double* to = own_products + row * call_.E;
        for (int64_t e = 0; e < call_.E; e++) to[e] += from[e] - off * rest_v[e] + far * apart_v[e];
      }
    }
    for (int i = 0; i < 3; i++) {
      const double more = group[i > 0], before = totals[i > 0];
      for (int64_t c = side(i); more > 0 && c < side(i + 1); c++) {
        own[side(i + 1) + c] += squares[c] - static_cast<double>(rest[c]) * rest[c] / more + apart[c] * apart[c] * before * more / (before + more);
        own[side(i) + c] += apart[c] * more / (before + more);
      }
    }
    totals[0] += group[0];
    totals[1] += group[1];
    std::fill_n(group, this->group(), 0.0f);
  }

  void write(int64_t image, const double* totals) const { std::copy_n(totals + COUNTS, moments(), call_.moments + image * moments()); }

 private:
  static constexpr int64_t COUNTS = 2;  // of queries and of keys
  const SoftlessCall& call_;
  const Arithmetic& way_;
  const int64_t pitch_;

  int64_t width(int i) const { return i < 2 ? call_.D : call_.E; }
  int64_t rows() const { return call_.H * call_.D; }
  int64_t side(int i) const { return i < 3 ? i * rows() : 2 * rows() + call_.H * call_.E; }  // where the channels of q, k or v begin
  int64_t tokens_of(int i, int64_t first, int64_t last) const { return std::max<int64_t>(0, least(last, i ? call_.M : call_.N) - first); }
  const uint8_t* mask_of(int i, int64_t image, int64_t first) const {
    const uint8_t* mask = i ? call_.mask : call_.query_mask;
    return mask ? mask + image * (i ? call_.M : call_.N) + first : nullptr;
  }
};

void moments(const SoftlessCall& call, const Arithmetic& way) { sweep(call, way, Moments(call, way)); }

// out = (q - middle) context + offset: middle in two parts, for what float32 leaves of a large one.
void centred(const SoftlessCall& call, const Arithmetic& way) {
  const int64_t size = call.bf16 ? 2 : 4, heads = call.B * call.H, pitch = way.pitch(call.E), blocks = (call.N + PANEL - 1) / PANEL;
  const auto high = buffer<float>(heads * call.D), low = buffer<float>(heads * call.D), matrices = buffer<float>(heads * call.D * pitch);
  for (int64_t i = 0; i < heads * call.D; i++) {
    high[i] = static_cast<float>(call.middle[i]);
    low[i] = static_cast<float>(call.middle[i] - high[i]);
    std::fill_n(std::copy_n(call.context + i * call.E, call.E, matrices.get() + i * pitch), pitch - call.E, 0.0f);
  }
  const int threads = threads_for(call, call.B * blocks);
  const int64_t bytes = PANEL * way.pitch(call.D) * static_cast<int64_t>(sizeof(float));
  share(threads, way, [&](int thread, int of) {
    const Room<char> scratch = room<char>(bytes);
    float* panel = reinterpret_cast<float*>(scratch.get());
    for (int64_t item = call.B * blocks * thread / of; item < call.B * blocks * (thread + 1) / of; item++) {
      const int64_t image = item / blocks, first = item % blocks * PANEL, n = least(PANEL, call.N - first);
      for (int64_t head = 0; head < call.H; head++) {
        const int64_t at = image * call.H + head;
        way.centre(Place{call.q, size}.at(image, head, first), call.q.token, n, nullptr, call.D, &high[at * call.D], &low[at * call.D], panel, nullptr, nullptr);
        way.apply_panel({panel, way.pitch(call.D), n, &matrices[at * call.D * pitch], call.D, call.E, Place{call.out, size}.at(image, head, first), call.out.token,
                         nullptr, 0, call.offset + at * call.E, OFFSET, nullptr, nullptr, nullptr, nullptr});
        if (call.query_mask) blank(call.out, size, image, head, first, n, call.E, call.query_mask + image * call.N);
      }
    }
  });
}

}  // namespace
}  // namespace softless

extern "C" {
int32_t softless_moments(const SoftlessCall* call) { return softless::guarded(call, softless::moments); }
int32_t softless_centred(const SoftlessCall* call) { return softless::guarded(call, softless::centred); }
}
