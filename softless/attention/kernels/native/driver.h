// What every sweep over tokens shares: memory, threads, the order in which sums join.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "parallel.h"
#include "processor.h"
#include "softless.h"

namespace softless {
namespace {

template <class T> using Buffer = std::unique_ptr<T[], decltype(&std::free)>;

template <class T> Buffer<T> buffer(int64_t count) {
  void* memory = std::aligned_alloc(64, static_cast<size_t>(round_up(std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)), 64)));
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory), &std::free);
}

struct Place {  // a tensor of `size` bytes an element
  const SoftlessTensor& tensor;
  int64_t size;
  char* at(int64_t b, int64_t h, int64_t t) const {
    return static_cast<char*>(tensor.data) + (b * tensor.image + h * tensor.head + t * tensor.token) * size;
  }
};

// Memory of a call, zero where it is new; whoever counts on zeros leaves zeros behind. A thread keeps a little from call to call, since fresh
// pages cost as much as the sums of a small image; more than that is given back.
template <class T> class Room {
 public:
  Room(Buffer<T>& kept, int64_t& kept_count, int64_t count) {
    if (count <= kept_count) {
      data_ = kept.get();
      return;
    }
    own_ = buffer<T>(count);
    data_ = own_.get();
    std::fill_n(data_, count, T{});
    if (count * static_cast<int64_t>(sizeof(T)) <= KEPT_BYTES) {
      kept = std::move(own_);
      kept_count = count;
    }
  }
  T* get() const { return data_; }

 private:
  static constexpr int64_t KEPT_BYTES = 8 << 20;
  Buffer<T> own_{nullptr, &std::free};
  T* data_;
};

template <class T, int NUMBER = 0> Room<T> room(int64_t count) {  // one of each type and number at a time
  thread_local Buffer<T> kept{nullptr, &std::free};
  thread_local int64_t kept_count = 0;
  return Room<T>(kept, kept_count, count);
}

// Tokens that are summed in float32 before they join the double totals. The borders depend on the tokens alone, never on the batch or on
// the number of threads.
int64_t group_of(int64_t tokens) {
  return tokens >= 8192 ? 1024 : tokens >= 2048 ? 256 : tokens >= 512 ? 128 : tokens > 64 ? round_up((tokens + 3) / 4, 8) : 64;
}

// What a sweep reads when it is through with a head of the tokens from `first` up to `last`.
Ahead after(const SoftlessCall& call, int64_t image, int64_t head, int64_t first, int64_t last) {
  const int64_t size = call.bf16 ? 2 : 4, next = (head + 1) % call.H, then = next ? first : last;
  Ahead made{{}, {}, size};
  const SoftlessTensor* tensors[] = {&call.q, &call.k, &call.v};
  for (int i = 0; i < 3; i++) {
    made.at[i] = Place{*tensors[i], size}.at(image, next, then);
    made.step[i] = tensors[i]->token * size;
  }
  return made;
}

class Session {  // a thread's use of an arithmetic
 public:
  explicit Session(const Arithmetic& way) : way_(way) {
    if (way_.begin) way_.begin();
  }
  ~Session() {
    if (way_.end) way_.end();
  }

 private:
  const Arithmetic& way_;
};

// work(thread, of) on each of some threads; what runs out of memory on one of them runs out here
template <class Work> void share(int threads, const Arithmetic& way, const Work& work) {
  std::atomic<bool> failed{false};
  on_threads(threads, [&](int thread, int of) {
    try {
      const Session session(way);
      work(thread, of);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) throw std::bad_alloc();
}

int threads_for(const SoftlessCall& call, int64_t items) { return static_cast<int>(std::max<int64_t>(1, least(call.threads, items))); }

// Sums over the tokens of each image: `add` takes some tokens into the float32 sums of a group, `close` those into the double totals of an
// image and leaves zeros, `write` hands the totals over. Groups join in the order of their tokens, so that the bits are the same beside
// other images and with any number of threads: each thread takes a stretch of (image, group of tokens), and where it begins within an
// image, the groups of that image wait for those before them.
template <class Sums> void sweep(const SoftlessCall& call, const Arithmetic& way, const Sums& sums) {
  const int64_t tokens = std::max(call.N, call.M), step = group_of(tokens), groups = (tokens + step - 1) / step, items = call.B * groups;
  const int threads = threads_for(call, items);
  const auto begin = [=](int thread) { return items * thread / threads; };
  const auto waiting = [=](int thread) {  // groups at the beginning of a stretch whose image began before it
    const int64_t first = begin(thread), rest = (groups - first % groups) % groups;
    return least(rest, begin(thread + 1) - first);
  };
  std::vector<int64_t> place(1, 0);
  for (int thread = 0; thread < threads; thread++) place.push_back(place.back() + waiting(thread));
  const Room<double> all_totals = room<double>(threads * sums.totals());
  const Room<float> waited = room<float>(place.back() * sums.group());
  share(threads, way, [&](int thread, int) {
    const Room<float> group = room<float, 1>(sums.group());
    const Room<char> scratch = room<char>(sums.scratch());
    double* totals = all_totals.get() + thread * sums.totals();
    const auto add = [&](int64_t item, float* to) { sums.add(item / groups, item % groups * step, least(tokens, (item % groups + 1) * step), scratch.get(), to); };
    int64_t item = begin(thread);
    for (int64_t i = place[static_cast<size_t>(thread)]; i < place[static_cast<size_t>(thread) + 1]; i++) add(item++, waited.get() + i * sums.group());
    for (; item < begin(thread + 1); item++) {
      add(item, group.get());
      sums.close(group.get(), totals, item % groups == 0);
      if ((item + 1) % groups == 0) sums.write(item / groups, totals);
    }
  });
  double* totals = nullptr;  // of the image that is not whole yet
  for (int thread = 0; thread < threads; thread++) {
    int64_t item = begin(thread);
    for (int64_t i = place[static_cast<size_t>(thread)]; i < place[static_cast<size_t>(thread) + 1]; i++, item++) {
      sums.close(waited.get() + i * sums.group(), totals, false);
      if ((item + 1) % groups == 0) sums.write(item / groups, totals);
    }
    if (item < begin(thread + 1)) totals = all_totals.get() + thread * sums.totals();
  }
}

void blank(const SoftlessTensor& out, int64_t size, int64_t image, int64_t head, int64_t first, int64_t n, int64_t width, const uint8_t* keep) {
  for (int64_t t = 0; keep && t < n; t++)
    if (!keep[first + t]) std::fill_n(Place{out, size}.at(image, head, first + t), width * size, '\0');
}

template <class Work> int32_t guarded(const SoftlessCall* call, const Work& work) {
  const Arithmetic* way = choose(call->bf16, call->path, call->D, call->E);
  if (!way) return 1;
  try {
    work(*call, *way);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace softless
