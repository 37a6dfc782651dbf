// The whole network on the CPU: frames in; labels, pictures, scores or probabilities out.
#pragma once

#include <list>
#include <memory>
#include <mutex>

#include "model.h"

namespace fastscnn {

struct Size {
    int h, w;
};

inline bool operator==(Size a, Size b) { return a.h == b.h && a.w == b.w; }

constexpr int kMinSide = 32, kMaxSide = 32768;
constexpr int kMaxThreads = 1024;

// Throws std::invalid_argument naming it unless both sides lie in least .. kMaxSide.
void check_size(const char* name, Size size, int least);

// uint8 pixels of 3 bytes, or, where `pixels` is null, normalised floats [batch, h, w, 3].
struct Frames {
    const uint8_t* pixels;
    const float* x;
    int batch;
    Size size;
    int64_t stride;  // bytes from row to row of the pixels, also from one frame's last to the next
    bool bgr;        // order of the pixels' channels, else RGB
};

// Where results go; what is null is not wanted. Sizes are those of `Sizes::out` but for scores.
struct Outputs {
    uint8_t* labels;       // [batch, h, w]
    float* confidence;     // [batch, h, w]: the probability of each pixel's label
    float* probabilities;  // [batch, classes, h, w]
    float* logits;         // [batch, classes, h, w]
    float* scores;         // [batch, scores_size(in), classes]
    uint8_t* color;        // [batch, h, w, 3]: the labels in their classes' colours, RGB
    uint8_t* overlay;      // [batch, h, w, 3]: the frame tinted with them, its channels' order
    const uint8_t* colors;  // RGB [classes, 3], for the two pictures
    double opacity;         // of the colours over the frame, 0..1
};

// Sizes of the frames, of what the network sees, and of the results.
struct Sizes {
    int batch;
    Size frame, in, out;

    bool operator==(const Sizes& o) const {
        return batch == o.batch && frame == o.frame && in == o.in && out == o.out;
    }
};

class Plan;
class Pool;
class Weights;

// May be shared by threads, which then take turns. The result does not depend on `threads`, to the
// bit. Memory for the two sizes seen last is kept; what else there is are the packed weights.
//
// Throws std::invalid_argument that names what was expected, or std::bad_alloc; the network can be
// used afterwards.
class Network {
  public:
    // The model's memory is read during construction only. `isa` "" is the machine's best.
    explicit Network(const Model& model, const std::string& isa = "", int max_sizes = 2);
    ~Network();

    void run(const Frames& frames, Size in, Size out, const Outputs& outputs, int threads);

    // Names of the operations for frames of those sizes, and one of them alone: for measurements,
    // during which nothing else may run. `outputs` as in `run`.
    std::vector<std::string> steps(const Frames& frames, Size in, Size out);
    void run_step(int step, const Frames& frames, Size in, Size out, const Outputs& outputs,
                  int threads);

    // Size of the class scores for what the network sees.
    Size scores_size(Size in) const;
    // Memory held besides the weights.
    int64_t bytes();
    const NetworkConfig& config() const;
    // What its dense convolutions multiply here: "float32", "bfloat16" or "int8".
    const char* precision() const;

  private:
    Plan& plan(const Frames& frames, Size in, Size out);

    const std::unique_ptr<Weights> weights_;
    const std::unique_ptr<Pool> pool_;
    std::mutex mutex_;
    std::list<std::unique_ptr<Plan>> plans_;  // the last used comes first
    const size_t max_sizes_;
};

}  // namespace fastscnn
