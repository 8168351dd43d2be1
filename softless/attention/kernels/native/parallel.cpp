#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

// torch brings an OpenMP runtime of its own, whose threads wait spinning between two operations. A second runtime would fight them for the
// cores, so nothing is linked here: the runtime that the process already has is asked for by the names that GCC's and LLVM's both
// export. Where there is none, threads are started for the call.
namespace softless {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Team {
  void (*body)(void*, int, int);
  void* state;
  int threads;
  std::atomic<int> next;
};

// Each member takes parts until none is left: also right where the runtime gives fewer threads than were asked for.
void member(void* data) {
  Team* team = static_cast<Team*>(data);
  for (int part; (part = team->next.fetch_add(1)) < team->threads;) team->body(team->state, part, team->threads);
}

}  // namespace

void on_threads(int threads, void (*body)(void*, int, int), void* state) {
  static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (threads <= 1) return body(state, 0, 1);
  Team team{body, state, threads, {0}};
  if (parallel) return parallel(member, &team, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(member, &team);
  } catch (const std::system_error&) {  // no more threads to be had: those that are there take all parts
  }
  member(&team);
  for (std::thread& other : others) other.join();
}

}  // namespace softless
