#include "cuda_on_host.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace on_host {

Settings settings;

namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

#if defined(__x86_64__)
// Saves the callee's registers on the stack, its top in *save, and goes on at `to`.
__attribute__((naked, noinline)) void swap_stacks(void** /*save*/, void* /*to*/) {
    asm("push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret");
}

struct Context {
    void* top = nullptr;
    void prepare(char* stack, void (*entry)()) {
        auto words = reinterpret_cast<void**>(stack + kStack) - 2;
        *words = reinterpret_cast<void*>(entry);  // where `ret` goes
        words -= 6;
        std::fill(words, words + 6, nullptr);
        top = words;
    }
    static void swap(Context& from, Context& to) { swap_stacks(&from.top, to.top); }
};
#else
struct Context {
    ucontext_t state;
    void prepare(char* stack, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = stack, state.uc_stack.ss_size = kStack, state.uc_link = nullptr;
        makecontext(&state, entry, 0);
    }
    static void swap(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};
#endif

struct Copy {
    void* shared;
    const void* global;
    int group;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
    Context context;
    State state;
    int groups;
    std::vector<Copy> copies;
};

// One exchange; two alternate, so that a fast lane cannot overwrite what a slow one still reads.
struct Round {
    Lane lanes[kWarp];
    const char* name;
    Product product;
    bool multiplied;
};

struct Warp {
    int waiting, alive;
    unsigned round;
    Round rounds[2];
};

// Who touched a 2-byte word of shared memory, and after how many barriers.
struct Word {
    int writer = -1, written = -1, reader = -1, read = -1;
    bool many_readers = false;
};

struct Block {
    dim3 index, grid;
    int size, alive, waiting, barriers, current;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::unique_ptr<char, decltype(&std::free)> shared{nullptr, &std::free};
    int shared_bytes;
    std::vector<Word> words;
    char* stacks;
    Context scheduler;
    const std::function<void()>* kernel;
    std::exception_ptr error;

    Thread& thread() { return threads[current]; }
    Warp& warp() { return warps[current / kWarp]; }
};

thread_local Block* block = nullptr;

struct Buffer {
    uintptr_t begin, end;
};
std::vector<Buffer> buffers;

[[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error(what + " (block " + std::to_string(block->index.x) + ", " +
                             std::to_string(block->index.y) + ", " +
                             std::to_string(block->index.z) + ", thread " +
                             std::to_string(block->current) + ")");
}

void give_way() { Context::swap(block->thread().context, block->scheduler); }

void thread_main() {
    try {
        (*block->kernel)();
        if (!block->thread().copies.empty()) fail("cp.async never waited for");
    } catch (...) {
        if (!block->error) block->error = std::current_exception();
    }
    block->thread().state = State::kDone;
    --block->alive;
    --block->warp().alive;
    for (;;) give_way();
}

void complete(Thread& t, int up_to_group) {
    for (const Copy& c : t.copies)
        if (c.group < up_to_group) {
            check_shared(c.shared, 16, Access::kWrite, "cp.async");
            std::memcpy(c.shared, c.global, 16);
        }
    t.copies.erase(std::remove_if(t.copies.begin(), t.copies.end(),
                                  [&](const Copy& c) { return c.group < up_to_group; }),
                   t.copies.end());
}

void resume(Block& b, int i) {
    b.current = i;
    Context::swap(b.scheduler, b.threads[i].context);
}

// Seeds 0 and 1: forward and backward; odd: all threads in turns; even: one warp as far as it gets.
void run_block(Block& b, std::mt19937& random) {
    std::vector<int> order(b.size);
    std::iota(order.begin(), order.end(), 0);
    if (settings.seed == 1) std::reverse(order.begin(), order.end());
    while (b.alive > 0) {
        if (settings.seed > 1) {
            std::vector<int> warps(b.warps.size());
            std::iota(warps.begin(), warps.end(), 0);
            std::shuffle(warps.begin(), warps.end(), random);
            const bool in_turns = settings.seed % 2;
            if (in_turns) std::shuffle(order.begin(), order.end(), random);
            else
                for (int i = 0; i < b.size; ++i)
                    order[i] = std::min(warps[i / kWarp] * kWarp + i % kWarp, b.size - 1);
        }
        bool progress = false;
        for (int first = 0; first < b.size; first += kWarp) {
            const int last = std::min(first + kWarp, b.size);
            for (bool again = true; again;) {
                again = false;
                for (int i = first; i < last; ++i)
                    if (b.threads[order[i]].state == State::kReady) {
                        resume(b, order[i]);
                        progress = again = true;
                        if (b.error) return;
                    }
                if (settings.seed % 2) break;
            }
        }
        if (b.waiting > 0 && b.waiting == b.alive) {
            b.waiting = 0;
            ++b.barriers;
            for (Thread& t : b.threads)
                if (t.state == State::kAtBarrier) t.state = State::kReady;
        } else if (!progress) {
            b.error = std::make_exception_ptr(
                std::runtime_error("a barrier or a warp collective that not all threads reach"));
            return;
        }
    }
}

void start_block(Block& b, int64_t linear) {
    b.index = dim3(linear % b.grid.x, linear / b.grid.x % b.grid.y,
                   linear / b.grid.x / b.grid.y);
    b.alive = b.size, b.waiting = 0, b.barriers = 0, b.error = nullptr;
    std::memset(b.shared.get(), 0xff, b.shared_bytes);
    std::fill(b.words.begin(), b.words.end(), Word{});
    for (Warp& w : b.warps) w.waiting = w.alive = 0, w.round = 0;
#if defined(__SANITIZE_ADDRESS__)
    // Fibers end without returning and leave their frames marked.
    __asan_unpoison_memory_region(b.stacks, kStack * b.size);
#endif
    for (int i = 0; i < b.size; ++i) {
        Thread& t = b.threads[i];
        t.state = State::kReady, t.groups = 0, t.copies.clear();
        t.context.prepare(b.stacks + kStack * i, thread_main);
        ++b.warps[i / kWarp].alive;
    }
}

uint16_t element(uint32_t word, int i) { return word >> (16 * i); }

float to_float(uint16_t bits, bool bf16) {
    if (!bf16) return half_to_float(bits);
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// A (row, k): lane 4 (row % 8) + k % 8 / 2, register row / 8 + 2 (k / 8); B (k, column): lane
// 4 column + k % 8 / 2, register k / 8; element k % 2 of the word.
void multiply(Round& round, bool bf16) {
    float a[16][16], b[16][8];
    for (int k = 0; k < 16; ++k) {
        for (int row = 0; row < 16; ++row)
            a[row][k] = to_float(element(round.lanes[row % 8 * 4 + k % 8 / 2]
                                             .a[row / 8 + k / 8 * 2], k % 2), bf16);
        for (int column = 0; column < 8; ++column)
            b[k][column] =
                to_float(element(round.lanes[column * 4 + k % 8 / 2].b[k / 8], k % 2), bf16);
    }
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
            float sum = 0;
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            round.product.value[row][column] = sum;
        }
    round.multiplied = true;
}

Round& meet(const char* name, const Lane& mine) {
    Warp& w = block->warp();
    const unsigned number = w.round;
    Round& round = w.rounds[number % 2];
    if (w.waiting == 0) round.name = name, round.multiplied = false;
    else if (round.name != name) fail(std::string("diverged warp: ") + name + ", " + round.name);
    round.lanes[block->current % kWarp] = mine;
    if (++w.waiting == w.alive) {
        if (w.alive != std::min(kWarp, block->size - block->current / kWarp * kWarp))
            fail(std::string(name) + " in a warp of which threads have returned");
        w.waiting = 0;
        ++w.round;
        const int first = block->current / kWarp * kWarp;
        for (int i = first; i < std::min(first + kWarp, block->size); ++i)
            if (block->threads[i].state == State::kInWarp) block->threads[i].state = State::kReady;
    } else {
        block->thread().state = State::kInWarp;
        give_way();
    }
    return round;
}

}  // namespace

dim3 thread_index() { return dim3(block->current); }
dim3 block_index() { return block->index; }
dim3 grid_size() { return block->grid; }
char* shared_memory() { return block->shared.get(); }

void barrier() {
    block->thread().state = State::kAtBarrier;
    ++block->waiting;
    give_way();
}

void check_global(const void* p, int bytes, const char* what) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address % bytes) fail(std::string("misaligned global ") + what);
    for (const Buffer& b : buffers)
        if (address >= b.begin && address + bytes <= b.end) return;
    fail(std::string("global ") + what + " outside every buffer");
}

void check_shared(const void* p, int bytes, Access access, const char* what) {
    const int64_t offset = static_cast<const char*>(p) - block->shared.get();
    if (offset < 0 || offset + bytes > block->shared_bytes)
        fail(std::string("shared ") + what + " at byte " + std::to_string(offset) + " of " +
             std::to_string(block->shared_bytes));
    if (offset % bytes) fail(std::string("misaligned shared ") + what);
    const int me = block->current, now = block->barriers;
    for (int64_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
        Word& w = block->words[i];
        const bool others_wrote = w.written == now && w.writer != me;
        const bool others_read = w.read == now && (w.reader != me || w.many_readers);
        if (others_wrote || (access == Access::kWrite && others_read))
            fail(std::string("race: shared ") + what + " at byte " + std::to_string(2 * i) +
                 ", touched by another thread since the last barrier");
        if (access == Access::kWrite) {
            w.writer = me, w.written = now;
        } else {
            w.many_readers = w.read == now && (w.many_readers || w.reader != me);
            w.reader = me, w.read = now;
        }
    }
}

void copy_async(void* shared, const void* global) {
    check_global(global, 16, "cp.async");
    check_shared(shared, 16, Access::kWrite, "cp.async");
    std::memset(shared, 0xff, 16);
    block->thread().copies.push_back({shared, global, block->thread().groups});
}

void commit_copies() { ++block->thread().groups; }

void wait_copies(int pending) { complete(block->thread(), block->thread().groups - pending); }

const Product& product(const Lane& mine, bool bf16) {
    Round& round = meet("mma", mine);
    if (!round.multiplied) multiply(round, bf16);
    return round.product;
}

// Of lanes whose rows no matrix needs, the addresses are not looked at.
void load_matrices(uint32_t* r, const void* row, int matrices, bool transposed) {
    static const char* const kNames[2] = {"ldmatrix", "ldmatrix.trans"};
    const int lane = block->current % kWarp;
    if (lane < 8 * matrices) check_shared(row, 16, Access::kRead, kNames[transposed]);
    Lane mine{};
    mine.row = row;
    const Round& round = meet(kNames[transposed], mine);
    for (int m = 0; m < matrices; ++m) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
            const int across = lane % 4 * 2 + i, down = lane / 4;
            const int line = transposed ? across : down, column = transposed ? down : across;
            pair[i] = static_cast<const uint16_t*>(round.lanes[m * 8 + line].row)[column];
        }
        std::memcpy(&r[m], pair, 4);
    }
}

float half_to_float(uint16_t bits) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return static_cast<float>(h);
}

uint16_t float_to_half(float value) {
    const _Float16 h = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
}

void clear_buffers() { buffers.clear(); }
void add_buffer(uintptr_t address, int64_t bytes) {
    buffers.push_back({address, address + static_cast<uintptr_t>(bytes)});
}

void run(dim3 grid, int threads, int shared, const std::function<void()>& kernel) {
    const int64_t count = int64_t(grid.x) * grid.y * grid.z;
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(settings.seed);
    if (settings.seed) std::shuffle(order.begin(), order.end(), random);

    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_lock;
    auto work = [&] {
        Block b{};
        b.grid = grid, b.size = threads, b.kernel = &kernel;
        b.threads.resize(threads);
        b.warps.resize((threads + kWarp - 1) / kWarp);
        b.shared.reset(static_cast<char*>(std::aligned_alloc(16, (shared + 15) / 16 * 16 + 16)));
        b.shared_bytes = shared;
        b.words.resize(shared / 2 + 1);
        std::vector<char> stacks(kStack * threads + 16);
        b.stacks = stacks.data() + 16 - reinterpret_cast<uintptr_t>(stacks.data()) % 16;
        block = &b;
        for (int64_t i; (i = next++) < count;) {
            start_block(b, order[i]);
            std::mt19937 shuffle(settings.seed * 7919u + unsigned(order[i]));
            run_block(b, shuffle);
            if (b.error) {
                const std::lock_guard<std::mutex> guard(error_lock);
                error = b.error;
                next = count;
            }
        }
        block = nullptr;
    };
    std::thread other(work);
    work();
    other.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace on_host
