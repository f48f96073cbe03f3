#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__has_feature)  // Clang's way to say which sanitizer there is
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
// It is told of every switch; its warning about swapcontext is printed all the same.
#define EMULATOR_ADDRESSES
#include <sanitizer/common_interface_defs.h>
#endif
// ThreadSanitizer takes each fiber for a thread and knows of no order between two but what acquire
// and release say. It must not see the emulator's own variables, which all of them use.
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define EMULATOR_RACES
#include <sanitizer/tsan_interface.h>
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define EMULATOR_UNSEEN
#endif

namespace emulator {
namespace {

constexpr std::size_t kStack = 256 << 10, kGuard = 4096;

// A stack, and where on it to go on.
struct Context {
  ucontext_t state;
  const void* stack = nullptr;
  std::size_t size = 0;
  void* sanitized = nullptr;  // what the sanitizer keeps of it
};

struct Fiber {
  Context context;
  const unsigned* passed = nullptr;  // of the barrier at which it waits; null: it does not
  unsigned seen = 0;                 // what that was when it came
  bool is_finished = false;
};

Context host;
std::unique_ptr<Fiber> fibers[1024];
Fiber* running;
const std::function<void()>* body;
char begun, ended;  // stand for the order between a block and what comes before and after it

EMULATOR_UNSEEN void acquire([[maybe_unused]] void* what) {
#if defined(EMULATOR_RACES)
  __tsan_acquire(what);
#endif
}

EMULATOR_UNSEEN void release([[maybe_unused]] void* what) {
#if defined(EMULATOR_RACES)
  __tsan_release(what);
#endif
}

EMULATOR_UNSEEN void arrived([[maybe_unused]] Context& at, [[maybe_unused]] Context& from) {
#if defined(EMULATOR_ADDRESSES)
  __sanitizer_finish_switch_fiber(at.sanitized, &from.stack, &from.size);
#endif
}

EMULATOR_UNSEEN void go(Context& from, Context& to) {
#if defined(EMULATOR_ADDRESSES)
  __sanitizer_start_switch_fiber(&from.sanitized, to.stack, to.size);
#elif defined(EMULATOR_RACES)
  from.sanitized = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.sanitized, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&from.state, &to.state);
  arrived(from, to);
}

// What a fiber does: one thread after the other.
EMULATOR_UNSEEN void live() {
  arrived(running->context, host);
  while (true) {
    acquire(&begun);
    (*body)();
    block->barrier.drop();
    warp().barrier.drop();
    release(&ended);
    running->is_finished = true;
    go(running->context, host);
  }
}

EMULATOR_UNSEEN std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) {
    std::perror("emulator: a stack");
    std::abort();
  }
  Context& context = fiber->context;
  context.stack = static_cast<char*>(memory) + kGuard;
  context.size = kStack;
#if defined(EMULATOR_RACES)
  context.sanitized = __tsan_create_fiber(0);
#endif
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = const_cast<void*>(context.stack);
  context.state.uc_stack.ss_size = kStack;
  makecontext(&context.state, live, 0);
  // AddressSanitizer would forget at every change what it knows of a stack that has a size here.
  context.state.uc_stack.ss_size = 0;
  return fiber;
}

EMULATOR_UNSEEN void run_block(unsigned threads) {
  unsigned left = threads;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i]->passed = nullptr;
    fibers[i]->is_finished = false;
  }
  while (left != 0) {
    bool stuck = true;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers[i];
      if (fiber.is_finished || (fiber.passed != nullptr && *fiber.passed == fiber.seen)) continue;
      stuck = false;
      fiber.passed = nullptr;
      running = &fiber;
      threadIdx = {i, 0, 0};
      go(host, fiber.context);
      left -= fiber.is_finished ? 1 : 0;
    }
    if (stuck) {
      std::fprintf(stderr, "emulator: %u threads wait at a barrier that others never reach\n",
                   left);
      std::abort();
    }
  }
}

}  // namespace

EMULATOR_UNSEEN void Barrier::wait() {
  // Not the same as at the next time: who is first there would be ordered before who is late here.
  void* order = &orders_[passed_ % 2];
  release(order);
  if (++arrived_ == expected_) {
    arrived_ = 0;
    ++passed_;
  } else {
    running->passed = &passed_;
    running->seen = passed_;
    go(running->context, host);
  }
  acquire(order);
}

EMULATOR_UNSEEN void Barrier::drop() {
  release(&orders_[passed_ % 2]);
  if (--expected_ != 0 && arrived_ == expected_) {
    arrived_ = 0;
    ++passed_;
  }
}

Block::Block(unsigned threads, std::size_t shared_bytes)
    : barrier(threads), shared(new unsigned char[shared_bytes]) {
  std::memset(shared.get(), 0xff, shared_bytes);  // NaN as float, half and bfloat16
  for (unsigned begin = 0; begin < threads; begin += kWarp)
    warps.push_back(std::make_unique<Warp>(threads - begin < kWarp ? threads - begin : kWarp));
}

void run(dim3 grid, unsigned threads, std::size_t shared_bytes,
         const std::function<void()>& thread) {
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i] == nullptr) fibers[i] = make_fiber();
  }
  body = &thread;
  blockDim = dim3(threads);
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        block = std::make_unique<Block>(threads, shared_bytes);
        release(&begun);
        run_block(threads);
        acquire(&ended);
      }
    }
  }
  block.reset();
}

}  // namespace emulator
