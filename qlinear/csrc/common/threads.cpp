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
// who has begun is at it any more: a thread that wakes too late has no part in it, and nobody waits for that. A pool is
// there until the process ends, and so are its threads.
class Pool {
 public:
  explicit Pool(int64_t count) {
    try {
      for (; size_ < count; ++size_) std::thread([this] { work(); }).detach();
    } catch (const std::exception&) {  // the system has no more of them, or no memory: those that there are do
    }
  }

  int64_t size() const { return size_; }

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
      wake_.wait(lock, [&] { return open_ && job_ != seen; });
      seen = job_;
      ++running_;
      lock.unlock();
      body_(context_);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  int64_t size_ = 1;
  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  size_t running_ = 0;
  uint64_t job_ = 0;
  bool open_ = false;
};

struct Host {
  awq_parallel_for parallel_for = nullptr;
  awq_get_num_threads num_threads = nullptr;
  int32_t own_threads = 1;
  Pool* pool = nullptr;
};

// The one that loops which begin now are run by. A loop that has begun stays with its own, so none is ever deleted:
// there are as many as were asked for, and their threads sleep.
const Host alone;
std::atomic<const Host*> host{&alone};

const Host* host_of(awq_parallel_for parallel_for, awq_get_num_threads num_threads, int32_t own_threads) {
  static std::mutex& mutex = *new std::mutex;
  static auto& hosts = *new std::vector<const Host*>;
  std::lock_guard<std::mutex> lock(mutex);
  for (const Host* known : hosts) {
    if (known->parallel_for == parallel_for && known->num_threads == num_threads && known->own_threads == own_threads)
      return known;
  }
  Pool* pool = parallel_for == nullptr && own_threads > 1 ? new Pool(own_threads) : nullptr;
  hosts.push_back(new Host{parallel_for, num_threads, own_threads, pool});
  return hosts.back();
}

int64_t threads_of(const Host& of) {
  uint32_t count = 1;
  if (of.num_threads != nullptr) {
    of.num_threads(&count);
    return count;
  }
  return of.pool != nullptr ? of.pool->size() : 1;
}

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

int64_t num_threads() { return threads_of(*host.load()); }

void for_range(int64_t units, int64_t grain, awq_range body, void* context) {
  const Host& by = *host.load();
  const int64_t threads = std::min(threads_of(by), (units + grain - 1) / grain);
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
  if (by.parallel_for != nullptr) {
    by.parallel_for(
        0, threads, 1, [](int64_t, int64_t, void* q) { static_cast<Queue*>(q)->drain(); }, &queue);
  } else {
    by.pool->run([](void* q) { static_cast<Queue*>(q)->drain(); }, &queue);
  }
}

}  // namespace awq

void awq_set_threads(awq_parallel_for parallel_for, awq_get_num_threads num_threads, int32_t own_threads) {
  awq::host = awq::host_of(parallel_for, num_threads, own_threads);
}

int32_t awq_threads(void) { return int32_t(awq::num_threads()); }
