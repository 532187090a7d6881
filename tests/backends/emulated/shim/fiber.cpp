#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define ROBUSTFLOW_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ROBUSTFLOW_ASAN
#endif
#endif
#if defined(ROBUSTFLOW_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace robustflow::emulator {
namespace {

// Instrumented frames are large; what is not touched costs nothing.
constexpr std::size_t kStackBytes = 256 * 1024;

std::size_t guard_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// The fiber that is about to begin.
Fiber* starting = nullptr;

void announce_switch(void** save, const void* bottom, std::size_t size) {
#if defined(ROBUSTFLOW_ASAN)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}
void announce_arrival(void* saved, const void** bottom, std::size_t* size) {
#if defined(ROBUSTFLOW_ASAN)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

}  // namespace

#if defined(ROBUSTFLOW_ASSEMBLY_SWITCH)
// Saves what a call must keep (the System V ABI) on this stack, takes the other one and restores.
// ucontext's switch makes two system calls for the signal mask, which is most of its time.
extern "C" void robustflow_switch_stack(void** save, void* to);
asm(R"(
.text
.globl robustflow_switch_stack
.hidden robustflow_switch_stack
.type robustflow_switch_stack, @function
robustflow_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size robustflow_switch_stack, .-robustflow_switch_stack
)");
#endif

Fiber::Fiber() {
  void* memory = mmap(nullptr, guard_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, guard_bytes(), PROT_NONE);
}

Fiber::~Fiber() {
  reset();
  munmap(memory_, guard_bytes() + kStackBytes);
}

void Fiber::reset() {
#if defined(ROBUSTFLOW_ASAN)
  __asan_unpoison_memory_region(memory_ + guard_bytes(), kStackBytes);
#endif
}

void Fiber::start(void (*entry)(void*), void* context) {
  entry_ = entry;
  context_ = context;
  fake_inside_ = nullptr;
#if defined(ROBUSTFLOW_ASSEMBLY_SWITCH)
  // As robustflow_switch_stack leaves a stack: six registers, and where to return to. Before the
  // first instruction of a function the stack is 8 bytes off a multiple of 16.
  void** top = reinterpret_cast<void**>(memory_ + guard_bytes() + kStackBytes);
  *--top = nullptr;  // nobody to return to
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  inside_ = top;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = memory_ + guard_bytes();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fiber::begin, 0);
#endif
}

void Fiber::begin() {
  Fiber* self = starting;
  announce_arrival(nullptr, &self->outside_bottom_, &self->outside_size_);
  self->entry_(self->context_);
  std::abort();  // the entry ends with finish()
}

void Fiber::resume() {
  starting = this;
  announce_switch(&fake_outside_, memory_ + guard_bytes(), kStackBytes);
#if defined(ROBUSTFLOW_ASSEMBLY_SWITCH)
  robustflow_switch_stack(&outside_, inside_);
#else
  swapcontext(&outside_, &inside_);
#endif
  announce_arrival(fake_outside_, nullptr, nullptr);
}

void Fiber::leave(bool for_good) {
  announce_switch(for_good ? nullptr : &fake_inside_, outside_bottom_, outside_size_);
#if defined(ROBUSTFLOW_ASSEMBLY_SWITCH)
  robustflow_switch_stack(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
}

void Fiber::suspend() {
  leave(false);
  announce_arrival(fake_inside_, &outside_bottom_, &outside_size_);
}

void Fiber::finish() {
  leave(true);
  std::abort();
}

}  // namespace robustflow::emulator
