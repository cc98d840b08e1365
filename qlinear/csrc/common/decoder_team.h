// One parallel region for a whole token. Every thread runs the same list of phases; a phase is a number of
// independent units, taken from a counter, and the next begins when all are done. A thread that comes late or is held
// up leaves its share to the others: only units already taken are waited for. It finds every phase later than the
// others did, so what the number of units is computed from stays as it was to the end of the call.
#pragma once

#include <stdint.h>

#include <atomic>
#include <thread>
#include <vector>

#include "processor.h"
#include "threads.h"

namespace awq {

struct alignas(64) Phase {
  std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

// One thread's place in the list of phases.
class Member {
 public:
  Member(Phase* first, int64_t threads) : at_(first), threads_(threads) {}

  // Run body(begin, end) over [0, units) in pieces of `grain`, with the other threads, and wait for the last.
  template <class Body>
  void share(int64_t units, int64_t grain, Body&& body) {
    share_from(0, units, grain, body);
  }

  // The same where units are long runs of memory: for each thread one piece of three quarters of an even share, then
  // small ones that even out unequal cores.
  template <class Body>
  void share_runs(int64_t units, Body&& body) {
    const int64_t run = 3 * units / (4 * threads_);
    share_from(run, units, even(units - run * threads_), body);
  }

  // Pieces small enough to even out unequal cores, large enough to keep the counters out of the picture.
  int64_t even(int64_t units) const { return units > threads_ * PIECES ? units / (threads_ * PIECES) : 1; }

 private:
  static constexpr int64_t SPINS = 256, PIECES = 4;

  // The first pieces, one for each thread, are of `run` units, the others of `grain`.
  template <class Body>
  void share_from(int64_t run, int64_t units, int64_t grain, Body&& body) {
    Phase& phase = *at_++;
    const int64_t runs = run > 0 ? threads_ : 0;
    while (true) {
      const int64_t piece = phase.next.fetch_add(1, std::memory_order_relaxed);
      const int64_t begin = piece < runs ? piece * run : runs * run + (piece - runs) * grain;
      if (begin >= units) break;
      const int64_t size = piece < runs ? run : grain, end = begin + size < units ? begin + size : units;
      body(begin, end);
      phase.done.fetch_add(end - begin, std::memory_order_release);
    }
    for (int64_t spins = 0; phase.done.load(std::memory_order_acquire) < units; ++spins) {
      if (spins < SPINS) pause();
      else std::this_thread::yield();
    }
  }

  Phase* at_;
  int64_t threads_;
};

// Work made of `parts` parts, one after the other: body(part, begin, end) for those units of each, units(part) of them,
// that lie in [begin, end) of the whole.
template <class Units, class Body>
void for_parts(int64_t parts, Units&& units, int64_t begin, int64_t end, Body&& body) {
  for (int64_t part = 0; part < parts && end > 0; ++part) {
    const int64_t count = units(part), last = end < count ? end : count;
    if (begin < last) body(part, begin > 0 ? begin : 0, last);
    begin -= count;
    end -= count;
  }
}

template <class Units>
int64_t units_of_parts(int64_t parts, Units&& units) {
  int64_t sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += units(part);
  return sum;
}

// Have `threads` threads run program(member), which goes through `phases` phases at most.
template <class Program>
void run_together(std::vector<Phase>& phases, int64_t threads, Program&& program) {
  for (Phase& phase : phases) {
    phase.next.store(0, std::memory_order_relaxed);
    phase.done.store(0, std::memory_order_relaxed);
  }
  struct Job {
    std::vector<Phase>& phases;
    Program& program;
    int64_t threads;
    std::atomic<bool> finished;
  } job{phases, program, threads, {false}};
  for_range(
      threads, 1,
      [](int64_t, int64_t, void* context) {
        Job& j = *static_cast<Job*>(context);
        if (j.finished.load(std::memory_order_relaxed)) return;  // the others did not wait for this one
        j.program(Member(j.phases.data(), j.threads));
        j.finished.store(true, std::memory_order_relaxed);
      },
      &job);
}

}  // namespace awq
