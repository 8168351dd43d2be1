// Work on the threads of the process's own OpenMP runtime.
#pragma once
#include <cstdint>

namespace softless {

// body(state, thread, threads), once on each of `threads` threads
void on_threads(int threads, void (*body)(void* state, int thread, int threads), void* state);

template <class Body> void on_threads(int threads, const Body& body) {
  on_threads(
      threads, [](void* state, int thread, int of) { (*static_cast<const Body*>(state))(thread, of); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace softless
