#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace awq {
namespace {

// Threads for hosts without a pool; they sleep between jobs. The caller is one of the `count`. A job is over when nobody
// who has begun is at it any more: a thread that wakes too late has no part in it, and nobody waits for that.
class Pool {
 public:
  explicit Pool(int64_t count) {
    try {
      for (int64_t i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::exception&) {  // the system has no more of them, or no memory: those that there are do
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int64_t size() const { return int64_t(workers_.size()) + 1; }

  // Run body(context) on every thread at once; one job at a time, a second caller waits its turn.
  void run(void (*body)(void*), void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      open_ = true;
      ++job_;
    }
    wake_.notify_all();
    body(context);
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stopping_ || (open_ && job_ != seen); });
      if (stopping_) return;
      seen = job_;
      ++running_;
      lock.unlock();
      body_(context_);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  size_t running_ = 0;
  uint64_t job_ = 0;
  bool open_ = false, stopping_ = false;
};

struct Host {
  awq_parallel_for parallel_for = nullptr;
  awq_get_num_threads num_threads = nullptr;
  Pool* pool = nullptr;
} host;

// Pieces are taken from a counter: for each thread one of three quarters of an even share, a long run of memory, then
// halves of an even share of what is left, so that there is little to wait for at the end.
struct Queue {
  std::atomic<int64_t> next{0};
  int64_t units, grain, threads;
  awq_range body;
  void* context;

  void drain() {
    int64_t begin = next.load(std::memory_order_relaxed);
    while (begin < units) {
      const int64_t first = 3 * units / (4 * threads);
      const int64_t share = begin < first * threads ? first : (units - begin) / (2 * threads);
      const int64_t end = std::min(begin + std::max(share, grain), units);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      body(begin, end, context);
      begin = next.load(std::memory_order_relaxed);
    }
  }
};

}  // namespace

int64_t num_threads() {
  uint32_t count = 1;
  if (host.num_threads != nullptr) {
    host.num_threads(&count);
    return count;
  }
  return host.pool != nullptr ? host.pool->size() : 1;
}

void for_range(int64_t units, int64_t grain, awq_range body, void* context) {
  const int64_t threads = std::min(num_threads(), (units + grain - 1) / grain);
  if (units <= grain || threads == 1) {
    if (units > 0) body(0, units, context);
    return;
  }
  Queue queue;
  queue.units = units;
  queue.grain = grain;
  queue.threads = threads;
  queue.body = body;
  queue.context = context;
  if (host.parallel_for != nullptr) {
    host.parallel_for(
        0, threads, 1, [](int64_t, int64_t, void* q) { static_cast<Queue*>(q)->drain(); }, &queue);
  } else {
    host.pool->run([](void* q) { static_cast<Queue*>(q)->drain(); }, &queue);
  }
}

}  // namespace awq

void awq_set_threads(awq_parallel_for parallel_for, awq_get_num_threads num_threads, int32_t own_threads) {
  delete awq::host.pool;
  awq::host = {parallel_for, num_threads, nullptr};
  if (parallel_for == nullptr && own_threads > 1) awq::host.pool = new awq::Pool(own_threads);
}

int32_t awq_threads(void) { return int32_t(awq::num_threads()); }
