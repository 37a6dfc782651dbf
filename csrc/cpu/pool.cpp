#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace fastscnn {
namespace {

// How long a helper stays awake for the next operation of a frame: longer than the gaps between
// them, shorter than anyone would notice.
constexpr std::chrono::microseconds kAwake{200};

}  // namespace

struct Pool::State {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> helpers;
    bool stop = false;
    const pid_t process = getpid();

    // The current operation; all but the counters change under the mutex, while nobody is inside.
    Body body = nullptr;
    const void* context = nullptr;
    int units = 0;
    int seats = 0;  // helpers that may still join
    int joined = 0;
    std::atomic<int> next{0};
    std::atomic<int> inside{0};
    std::atomic<uint64_t> operations{0};

    void work(int worker) {
        for (int unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;)
            body(context, unit, worker);
    }

    void help() {
        uint64_t seen = 0;
        for (;;) {
            const auto asleep_at = std::chrono::steady_clock::now() + kAwake;
            while (operations.load(std::memory_order_acquire) == seen &&
                   std::chrono::steady_clock::now() < asleep_at)
                std::this_thread::yield();
            int worker = 0;
            {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return stop || operations.load() != seen; });
                if (stop) return;
                seen = operations.load();
                if (seats == 0) continue;
                --seats;
                worker = ++joined;
                inside.fetch_add(1);
            }
            work(worker);
            inside.fetch_sub(1, std::memory_order_release);
        }
    }
};

Pool::Pool() : state_(new State) {}

Pool::~Pool() {
    if (getpid() != state_->process) {  // a fork has no helpers: nobody to join
        for (std::thread& t : state_->helpers) t.detach();
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(state_->mutex);
        state_->stop = true;
    }
    state_->wake.notify_all();
    for (std::thread& t : state_->helpers) t.join();
    delete state_;
}

void Pool::run(int threads, int units, Body body, const void* context) {
    State& s = *state_;
    const int helpers = (threads < units ? threads : units) - 1;
    if (helpers <= 0) {
        for (int unit = 0; unit < units; ++unit) body(context, unit, 0);
        return;
    }
    try {
        while (int(s.helpers.size()) < helpers) s.helpers.emplace_back([&s] { s.help(); });
    } catch (const std::system_error&) {
        throw std::runtime_error("threads " + std::to_string(threads) + ": the system starts " +
                                 std::to_string(s.helpers.size() + 1) + "; ask for no more");
    }
    {
        const std::lock_guard<std::mutex> lock(s.mutex);
        s.body = body;
        s.context = context;
        s.units = units;
        s.seats = helpers;
        s.joined = 0;
        s.next.store(0);
        s.operations.fetch_add(1);
    }
    s.wake.notify_all();
    s.work(0);
    {
        const std::lock_guard<std::mutex> lock(s.mutex);
        s.seats = 0;
    }
    while (s.inside.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

}  // namespace fastscnn
