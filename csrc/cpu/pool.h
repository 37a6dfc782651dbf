// Threads that share the units of an operation.
#pragma once

#include <cstdint>

namespace fastscnn {

// Helpers of one workspace, for one operation at a time. The caller works too and never waits for a
// helper that has not taken a unit, so that a busy machine costs speed but no standstill. Helpers
// are started on first need and sleep between operations; the result of an operation must not
// depend on who takes which unit.
class Pool {
  public:
    using Body = void (*)(const void* context, int unit, int worker);

    Pool();
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Calls body(context, unit, worker) for every unit below `units`, on at most `threads` threads;
    // worker numbers the threads from 0. Throws std::runtime_error where the system starts no more.
    void run(int threads, int units, Body body, const void* context);

  private:
    struct State;
    State* state_;
};

}  // namespace fastscnn
