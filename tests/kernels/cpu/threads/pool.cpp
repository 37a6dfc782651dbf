// Thousands of short jobs on more threads than there are cores, with pauses in which late helpers
// come: each unit is worked on once, for its own job, and no two threads have one number at a time.

#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr int kThreads = 8, kUnits = 11, kJobs = 5000;

struct Job {
    int done[kUnits] = {};  // how often each unit was worked on
    std::atomic<int> collisions{0};
    std::atomic<bool> busy[kThreads] = {};
};

void work(const void* context, int unit, int worker) {
    Job& job = *static_cast<Job*>(const_cast<void*>(context));
    if (worker < 0 || worker >= kThreads || job.busy[worker].exchange(true)) {
        ++job.collisions;
        return;
    }
    ++job.done[unit];
    job.busy[worker] = false;
}

}  // namespace

int main() {
    std::vector<Job> jobs(kJobs);
    fastscnn::Pool pool;
    for (size_t i = 0; i < jobs.size(); ++i) {
        pool.run(kThreads, kUnits, work, &jobs[i]);
        std::this_thread::sleep_for(std::chrono::microseconds(i % 4 * 20));
    }
    int wrong = 0;
    for (const Job& job : jobs) {
        wrong += job.collisions;
        for (const int times : job.done) wrong += times != 1;
    }
    std::printf("%d faults in %d jobs\n", wrong, kJobs);
    return wrong != 0;
}
