// The scheduler of cuda_on_host.h. Compiled without instrumentation, so that a sanitizer sees only what kernels do; the
// sanitizers' own functions are weak and called where a program has them.
#include "cuda_on_host.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

extern "C" {
extern char cuda_shared_begin[], cuda_shared_end[];  // shared_memory.ld
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* token);
__attribute__((weak)) void __tsan_release(void* token);
}

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kMaxSharedBytes = 48 << 10;  // of a launch that has not asked for more
constexpr unsigned kNoSync = 1;               // a switch between fibers orders no memory accesses

void release(void* token) {
  if (__tsan_release) __tsan_release(token);
}
void acquire(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}

// Where threads wait for each other. Rounds alternate between two buffers and two tokens: a thread that is already in
// the next round neither overwrites what the others still read nor orders itself before them.
struct Meeting {
  unsigned arrived = 0, round = 0;
  int line = 0;
  uint64_t values[2][32];
  char token[2];
};

struct Thread {
  ucontext_t context;
  void* stack;
  void* tsan;
  void* fake_stack;
  Position position;
  unsigned index;
  bool done;
  const Meeting* waits;  // until its round is no longer `round`
  unsigned round;
  const char* waits_at;
};

using Warp = std::map<unsigned, Meeting>;  // by mask

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting barrier;
  char* shared;
  void (*body)(void*);
  void* argument;
  char begin, end;  // tokens
};

Block* block;
Thread* running;
ucontext_t scheduler;
void* scheduler_tsan;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
cudaError_t error = cudaSuccess;

// Ends the program: what follows would mean nothing.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  const auto [thread, block, block_size, grid_size] = running->position;
  fprintf(stderr, "cuda_on_host: block %u %u %u, thread %u %u %u: ", block.x, block.y, block.z, thread.x, thread.y,
          thread.z);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  std::_Exit(3);
}

void resume(Thread& thread) {
  running = &thread;
  void* fake_stack = nullptr;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack, thread.stack, kStackBytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(thread.tsan, kNoSync);
  swapcontext(&scheduler, &thread.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void give_way(bool for_good) {
  Thread& self = *running;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, scheduler_stack, scheduler_stack_bytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, kNoSync);
  swapcontext(&self.context, &scheduler);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
}

void enter() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  acquire(&block->begin);
  block->body(block->argument);
  release(&block->end);
  running->done = true;
  give_way(true);
}

// Returns the round in which the calling thread met `expected` threads (or lanes, as bits) at `meeting`.
unsigned meet(Meeting& meeting, unsigned arriving, unsigned expected, const char* at, int line, bool orders_memory) {
  const unsigned round = meeting.round, parity = round & 1;
  if (meeting.arrived && meeting.line != line)
    fail("divergent %s: some threads wait in line %d, others in line %d", at, meeting.line, line);
  meeting.line = line;
  meeting.arrived += arriving;
  if (orders_memory) release(&meeting.token[parity]);
  if (meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.round;
  } else {
    running->waits = &meeting;
    running->round = round;
    running->waits_at = at;
    give_way(false);
    running->waits = nullptr;
  }
  if (orders_memory) acquire(&meeting.token[parity]);
  return parity;
}

Meeting& warp_meeting(unsigned mask, int line) {
  if (!(mask >> lane() & 1)) fail("line %d: lane %u is not in its own mask %08x", line, lane(), mask);
  return block->warps[running->index / 32][mask];
}

// The values of all lanes, to be read before the lane's next meeting.
const uint64_t* exchange(unsigned mask, uint64_t value, int line) {
  Meeting& meeting = warp_meeting(mask, line);
  meeting.values[meeting.round & 1][lane()] = value;
  return meeting.values[meet(meeting, 1u << lane(), mask, "a shuffle", line, false)];
}

[[noreturn]] void fail_of_deadlock() {
  std::map<std::pair<const char*, int>, int> waiting;
  int left = 0;
  for (const Thread& thread : block->threads) thread.done ? ++left : ++waiting[{thread.waits_at, thread.waits->line}];
  const uint3 index = running->position.block;
  fprintf(stderr, "cuda_on_host: block %u %u %u: divergent threads, %d have left the kernel", index.x, index.y, index.z,
          left);
  for (const auto& [where, count] : waiting)
    fprintf(stderr, ", %d wait at %s in line %d", count, where.first, where.second);
  fputc('\n', stderr);
  std::_Exit(3);
}

void poison_shared(size_t dynamic_bytes) {
  // Byte by byte: the redzones between the variables are written too, which memset is not allowed to.
  for (volatile char* byte = cuda_shared_begin; byte < cuda_shared_end; ++byte) *byte = '\xff';
  for (volatile char* byte = block->shared; byte < block->shared + dynamic_bytes; ++byte) *byte = '\xff';
}

void run_block(uint3 index, const std::vector<unsigned>& order, size_t shared_bytes) {
  poison_shared(shared_bytes);
  block->warps.assign((order.size() + 31) / 32, Warp{});
  for (Thread& thread : block->threads) {
    thread.position.block = index;
    thread.done = false;
    thread.waits = nullptr;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.context, enter, 0);
  }
  release(&block->begin);
  for (size_t alive = order.size(); alive > 0;) {
    bool progress = false;
    for (unsigned i : order) {
      Thread& thread = block->threads[i];
      if (thread.done || (thread.waits && thread.waits->round == thread.round)) continue;
      resume(thread);
      progress = true;
      alive -= thread.done;
    }
    if (!progress) fail_of_deadlock();
  }
  acquire(&block->end);
}

// 0 .. n - 1 in an order of chance.
std::vector<unsigned> turns(size_t n, unsigned seed) {
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  if (seed) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

uint3 unflatten(uint64_t i, dim3 size) {
  return {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
}

}  // namespace

const Position& position() { return running->position; }
unsigned lane() { return running->index % 32; }
void* dynamic_shared() { return block->shared; }

void sync_threads(int line) { meet(block->barrier, 1, unsigned(block->threads.size()), "__syncthreads", line, true); }

void sync_warp(unsigned mask, int line) {
  meet(warp_meeting(mask, line), 1u << lane(), mask, "__syncwarp", line, true);
}

uint64_t shuffle_word(unsigned mask, uint64_t value, unsigned source, int line) {
  const uint64_t* values = exchange(mask, value, line);
  if (source > 31 || !(mask >> source & 1)) fail("line %d: a shuffle reads lane %u, mask %08x", line, source, mask);
  return values[source];
}

unsigned ballot(unsigned mask, bool value, int line) {
  const uint64_t* values = exchange(mask, value, line);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) bits |= static_cast<unsigned>(values[lane]) << lane;
  return bits;
}

cudaError_t take_error() { return std::exchange(error, cudaSuccess); }

void run(dim3 grid, dim3 size, size_t shared_bytes, void (*body)(void*), void* argument) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  const bool fits = threads <= 1024 && size.z <= 64 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!threads || !blocks || !fits || shared_bytes > kMaxSharedBytes) {
    error = shared_bytes > kMaxSharedBytes ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration;
    return;
  }
  Block here{};
  here.threads.resize(threads);
  here.body = body, here.argument = argument;
  here.shared = static_cast<char*>(malloc(shared_bytes));
  block = &here;
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = here.threads[i];
    thread.index = i;
    thread.position = {unflatten(i, size), {}, size, grid};
    thread.stack = malloc(kStackBytes);
    if (__tsan_create_fiber) thread.tsan = __tsan_create_fiber(0);
  }
  const char* text = std::getenv("CUDA_ON_HOST_SEED");
  const unsigned seed = text ? unsigned(std::atoi(text)) : 0;
  const std::vector<unsigned> order = turns(threads, seed);
  for (unsigned i : turns(blocks, seed)) run_block(unflatten(i, grid), order, shared_bytes);
  for (Thread& thread : here.threads) {
    free(thread.stack);
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(thread.tsan);
  }
  free(here.shared);
  block = nullptr;
  running = nullptr;
}

}  // namespace cuda_on_host
