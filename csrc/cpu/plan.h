// A frame's operations in order, and the one arena in which their maps and scratch memory lie.
#pragma once

#include <functional>

#include "network.h"
#include "weights.h"

namespace fastscnn {

// Memory straight from the system, so that it goes back to it.
class Pages {
  public:
    Pages() = default;
    explicit Pages(int64_t bytes);  // throws std::bad_alloc
    ~Pages();
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    char* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    void swap(Pages& other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    char* data_ = nullptr;
    int64_t bytes_ = 0;
};

// The operations for frames of one size. A piece of the arena (a map, or an operation's scratch
// memory) lives from the first step that uses it to the last; pieces whose lives do not overlap
// share memory.
class Plan {
  public:
    // What a run reads and writes.
    struct Job {
        const Frames& frames;
        const Outputs& outputs;
    };
    struct Step {
        std::string name;
        // Returns the floats of scratch memory that it needs, and runs where `call` has it.
        std::function<int64_t(const Job&, Call)> run;
        int scratch;  // a piece
    };

    Plan(const Weights& weights, const Sizes& sizes);
    Plan(const Plan&) = delete;

    // Makes sure of the memory for that many threads.
    void prepare(int threads, Pool& pool);
    // After `prepare`, with its threads.
    void run(size_t step, const Job& job, Pool& pool) const;

    const Sizes sizes;
    const std::vector<Step>& steps() const { return steps_; }
    int64_t bytes() const { return arena_.bytes(); }

  private:
    struct Piece {
        int64_t bytes;
        int first, last;  // steps
        int64_t offset;
    };

    int piece(int64_t bytes);
    int map(int channels, Size size, bool bytes = false);
    // Adds a step that uses those pieces.
    void step(std::string name, std::vector<int> uses, std::function<int64_t(const Job&, Call)> run);
    void lay_out();
    void* at(int piece) const;
    float* floats(int piece) const { return static_cast<float*>(at(piece)); }
    Map at(int piece, Size size) const;

    void add_trunk();
    void add_fusion(int high, int low, Size small, Size large);
    void add_heads(int scores, Size size);

    const Weights& weights_;
    std::vector<Step> steps_;
    std::vector<Piece> pieces_;
    Pages arena_;
    int threads_ = 0;
};

}  // namespace fastscnn
