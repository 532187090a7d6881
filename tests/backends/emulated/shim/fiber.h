// Fibers: stacks of their own that are switched by hand, and that AddressSanitizer is told about.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && !defined(ROBUSTFLOW_UCONTEXT)
#define ROBUSTFLOW_ASSEMBLY_SWITCH
#else
#include <ucontext.h>
#endif

namespace robustflow::emulator {

// Runs entry(context) on a stack of its own. resume() and suspend() hand control to and fro; the
// entry must not return, and ends with finish().
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*entry)(void*), void* context);
  void resume();
  void suspend();
  [[noreturn]] void finish();
  // Forgets what an abandoned run has left on the stack.
  void reset();

 private:
  static void begin();
  void leave(bool for_good);

  char* memory_;  // a guard page, then the stack
  void (*entry_)(void*) = nullptr;
  void* context_ = nullptr;
#if defined(ROBUSTFLOW_ASSEMBLY_SWITCH)
  void* inside_ = nullptr;  // stack pointers while the other side runs
  void* outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
  // AddressSanitizer's
  void* fake_inside_ = nullptr;
  void* fake_outside_ = nullptr;
  const void* outside_bottom_ = nullptr;
  std::size_t outside_size_ = 0;
};

}  // namespace robustflow::emulator
