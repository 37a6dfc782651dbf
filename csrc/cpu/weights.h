// A network's convolutions, packed for one instruction set, and the operations that use them.
#pragma once

#include <map>
#include <memory>

#include "model.h"
#include "packed.h"

namespace fastscnn {

// Who works on an operation, and where. `scratch` null: how many floats it needs is returned and
// nothing else happens; see kernels.h.
struct Call {
    Pool* pool;
    int threads;
    float* scratch;
};

// A map [batch, h, w, channels] of floats or of bytes.
struct Map {
    void* data;
    int batch, h, w;

    float* floats() const { return static_cast<float*>(data); }
    uint8_t* bytes() const { return static_cast<uint8_t*>(data); }
};

// The convolutions of a model by name.
class Convs {
  public:
    explicit Convs(const Model& model);

    const ConvShape& shape(const std::string& name) const { return *convs_.at(name).first; }
    const Conv& conv(const std::string& name) const { return *convs_.at(name).second; }
    PackedMatrix matrix(const std::string& name, const std::string& isa) const;
    PackedTaps taps(const std::string& name, const std::string& isa) const;

  private:
    std::vector<ConvShape> shapes_;
    std::map<std::string, std::pair<const ConvShape*, const Conv*>> convs_;
};

// The blocks behind learning to downsample, in float32 or in int8.
class Trunk {
  public:
    virtual ~Trunk() = default;
    // Block i of nine.
    virtual int64_t bottleneck(int i, Map x, float* y, Call call) const = 0;
    // Both maps to one; behind a dense first convolution, only its ReLU is left of it.
    virtual int64_t fusion(Map high, const float* low, const Axis& rows, const Axis& cols,
                           void* fused, Call call) const = 0;
    // Both DSConvs and the 1x1 to class scores.
    virtual int64_t classifier(Map fused, float* scores, Call call) const = 0;
    // Of the map of learning to downsample, where it and that of the fusion are bytes; else null.
    virtual const Quantizer* bytes() const = 0;
};

std::unique_ptr<Trunk> make_float_trunk(const NetworkConfig& config, const Convs& convs,
                                        const std::string& isa);
// Throws std::invalid_argument naming a range that cannot be used.
std::unique_ptr<Trunk> make_int8_trunk(const Model& model, const Convs& convs,
                                       const std::string& isa);

// Everything that runs.
class Weights {
  public:
    Weights(const Model& model, const std::string& isa);

    // From a frame (uint8, contiguous RGB) or, where it is null, normalised floats.
    int64_t learning_to_downsample(const uint8_t* frame, const float* x, int batch, int h, int w,
                                   void* y, Call call) const;
    int64_t pyramid_pool(Map x, const std::vector<Axis>& rows, const std::vector<Axis>& cols,
                         float* y, Call call) const;
    // The dense first convolution of the fusion, which commutes with the sampling.
    int64_t dense(Map x, float* y, Call call) const;

    // What the dense convolutions multiply: "float32", "bfloat16", or, most of them, "int8".
    const char* precision() const;

    const NetworkConfig config;
    const Kernels& kernels;
    const std::unique_ptr<Trunk> trunk;

  private:
    Weights(const Model& model, const Convs& convs, std::unique_ptr<Trunk> trunk,
            const std::string& isa);

    struct Dsconv {
        PackedTaps taps;
        PackedMatrix weight;
    };
    PackedMatrix stem_;
    Dsconv down_[2];
    std::vector<PackedMatrix> branches_;
    std::vector<PackedMatrix> join_;  // 1x1: of x, then of every branch; 3x3: of everything
    std::vector<int> offsets_;        // 3x3: first channel of every branch, then of x
    std::unique_ptr<PackedMatrix> dense_;
};

constexpr int kBins[kBranches] = {1, 2, 3, 6};

// Rows above and below (or columns beside) an axis of the stem, and its output size.
struct StemAxis {
    int before, out;
    StemAxis(int in, int padding);
};

}  // namespace fastscnn
