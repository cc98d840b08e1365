// The kernels and what launches them, in one library: g++ -I of this directory.
#include "../../../qlinear/csrc/cuda/kernels.cu"

#include <deque>

namespace shim {

Block* block;
SHIM_LOCAL Index thread, block_at;
Index block_size, grid_size;

typedef void (*Kernel)(const void* job);

#ifdef SHIM_THREADS
void run_block(Kernel kernel, const void* job, Index at) {
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < block_size.x; ++i)
    threads.emplace_back([=] {
      thread = {i, 0, 0};
      block_at = at;
      kernel(job);
    });
  for (std::thread& one : threads) one.join();
}
#else
struct Fiber {
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  bool running = false;
};
constexpr size_t STACK = 96 << 10;
std::deque<Fiber> fibers;
unsigned current, left = 0;
jmp_buf scheduler;
Kernel to_run;
const void* its_job;

void go(unsigned index) {
  current = index;
  thread.x = index;
  _longjmp(fibers[index].here, 1);
}

void next_running() {
  unsigned index = current;
  do index = (index + 1) % block_size.x;
  while (!fibers[index].running);
  go(index);
}

void next_fiber() {
  if (_setjmp(fibers[current].here) == 0) next_running();
}

// A fiber lives on: a kernel done, it waits in here for the next.
void body() {
  for (;;) {
    if (_setjmp(fibers[current].here) == 0) {
      if (left == 0) _longjmp(scheduler, 1);
      next_running();
    }
    to_run(its_job);
    fibers[current].running = false;
    --left;
  }
}

void add_fiber() {
  fibers.emplace_back();
  current = unsigned(fibers.size()) - 1;
  Fiber& fiber = fibers.back();
  fiber.stack.reset(new char[STACK]);
  ucontext_t context, unused;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, body, 0);
  if (_setjmp(scheduler) == 0) swapcontext(&unused, &context);
}

void run_block(Kernel kernel, const void* job, Index at) {
  to_run = kernel;
  its_job = job;
  block_at = at;
  while (fibers.size() < block_size.x) add_fiber();
  for (unsigned i = 0; i < block_size.x; ++i) fibers[i].running = true;
  left = block_size.x;
  if (_setjmp(scheduler) == 0) go(0);
}
#endif

}  // namespace shim

extern "C" __attribute__((visibility("default"))) void shim_launch(shim::Kernel kernel, const void* job, unsigned grid,
                                                                  unsigned threads, unsigned shared_bytes) {
  using namespace shim;
  block_size = {threads, 1, 1};
  grid_size = {grid, 1, 1};
  std::vector<uint4> shared(shared_bytes / 16 + 1);
  for (unsigned i = 0; i < grid; ++i) {
    memset(static_cast<void*>(shared.data()), 0xff, shared.size() * 16);
    Block of_block(threads);
    for (auto& copies : of_block.copies) copies.resize(1);
    of_block.shared = shared.data();
    block = &of_block;
    run_block(kernel, job, {i, 0, 0});
  }
}
