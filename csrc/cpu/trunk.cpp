// The trunk in float32 and in int8.

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "quantize.h"
#include "weights.h"

namespace fastscnn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Activation kReluActivation = {0.f, kInfinity};

std::string bottleneck_name(int i) {
    return "global_feature_extractor.bottleneck" + std::to_string(i / 3 + 1) + "." +
           std::to_string(i % 3);
}

std::string dsconv_name(int i) { return "classifier.dsconv" + std::to_string(i + 1); }

class FloatTrunk : public Trunk {
  public:
    FloatTrunk(const NetworkConfig& config, const Convs& convs, const std::string& isa)
        : kernels_(find_kernels(isa)),
          low_(convs.matrix("feature_fusion.low", isa)),
          high_(convs.matrix("feature_fusion.high", isa)),
          last_(convs.matrix("classifier.conv", isa)),
          dilation_(config.ffm_dilation),
          bottleneck_act_{0.f, config.bottleneck_relu6 ? 6.f : kInfinity},
          mid_act_{config.dsconv_relu ? 0.f : -kInfinity, kInfinity} {
        for (int i = 0; i < 9; ++i) {
            const std::string name = bottleneck_name(i);
            blocks_.push_back({convs.matrix(name + ".expand", isa),
                               convs.taps(name + ".depthwise", isa),
                               convs.matrix(name + ".project", isa)});
        }
        for (int i = 0; i < 2; ++i)
            dsconvs_.push_back({convs.taps(dsconv_name(i) + ".depthwise", isa),
                                convs.matrix(dsconv_name(i) + ".pointwise", isa)});
        if (!config.ffm_dense) taps_.push_back(convs.taps("feature_fusion.depthwise", isa));
    }

    int64_t bottleneck(int i, Map x, float* y, Call call) const override {
        const Block& b = blocks_[i];
        return kernels_.inverted_residual({x.floats(), x.batch, x.h, x.w, kBottlenecks[i].stride,
                                           b.expand.view(), b.taps.view(), b.project.view(),
                                           bottleneck_act_, i % 3 > 0, y, call.pool, call.threads,
                                           call.scratch});
    }

    int64_t fusion(Map high, const float* low, const Axis& rows, const Axis& cols, void* fused,
                   Call call) const override {
        return kernels_.feature_fusion({high.floats(), low, high.batch, view(rows), view(cols),
                                        taps_.empty() ? Taps{} : taps_[0].view(), dilation_,
                                        low_.view(), high_.view(), static_cast<float*>(fused),
                                        call.pool, call.threads, call.scratch});
    }

    int64_t classifier(Map fused, float* scores, Call call) const override {
        const Dsconv &first = dsconvs_[0], &second = dsconvs_[1];
        return kernels_.classifier({fused.floats(), fused.batch, fused.h, fused.w,
                                    first.taps.view(), first.weight.view(), second.taps.view(),
                                    second.weight.view(), last_.view(), mid_act_, kReluActivation,
                                    scores, call.pool, call.threads, call.scratch});
    }

    const Quantizer* bytes() const override { return nullptr; }

  private:
    struct Block {
        PackedMatrix expand;
        PackedTaps taps;
        PackedMatrix project;
    };
    struct Dsconv {
        PackedTaps taps;
        PackedMatrix weight;
    };
    const Kernels& kernels_;
    std::vector<Block> blocks_;
    std::vector<Dsconv> dsconvs_;
    std::vector<PackedTaps> taps_;  // of the fusion: one, or none where its first layer is dense
    PackedMatrix low_, high_, last_;
    int dilation_;
    Activation bottleneck_act_, mid_act_;
};

// Ranges by the name of the convolution whose input they are of.
class Ranges {
  public:
    explicit Ranges(const Model& model) {
        const std::vector<std::string> names = int8_inputs(model.config);
        if (names.size() != model.ranges.size())
            throw std::invalid_argument("the model has " + std::to_string(model.ranges.size()) +
                                        " int8 ranges: expected " + std::to_string(names.size()) +
                                        ", or none");
        for (size_t i = 0; i < names.size(); ++i) {
            const Range& range = model.ranges[i];
            if (!(range[0] <= 0 && range[1] >= 0 && range[1] - range[0] < 1e30))
                throw std::invalid_argument("int8 range of " + names[i] +
                                            ": expected finite numbers, low <= 0 <= high");
            ranges_[names[i]] = range;
        }
    }

    const Range& operator[](const std::string& name) const { return ranges_.at(name); }

    // Of what lies behind ReLU.
    const Range& positive(const std::string& name) const {
        if (ranges_.at(name)[0] < 0)
            throw std::invalid_argument("int8 range of " + name +
                                        ": expected one that starts at 0 (behind ReLU or ReLU6)");
        return ranges_.at(name);
    }

  private:
    std::map<std::string, Range> ranges_;
};

class Int8Trunk : public Trunk {
  public:
    Int8Trunk(const Model& model, const Convs& convs, const std::string& isa)
        : kernels_(find_kernels_int8(isa)), dilation_(model.config.ffm_dilation) {
        const Ranges ranges(model);
        const auto floats = [&](const std::string& name, const int8::Steps& source) {
            const ConvShape& shape = convs.shape(name);
            return int8::to_floats(shape, convs.conv(name), source).matrix(shape);
        };
        const auto bytes = [&](const std::string& name, const int8::Steps& source,
                               const Range& range, int8::Steps& target) {
            return int8::to_bytes(convs.shape(name), convs.conv(name), source, range, target);
        };
        for (int i = 0; i < 9; ++i) {
            const std::string name = bottleneck_name(i);
            const int8::Steps in = int8::steps(ranges[name + ".expand"]);
            int8::Steps hidden, filtered;
            const int8::Product expand =
                bytes(name + ".expand", in, ranges.positive(name + ".depthwise"), hidden);
            const int8::Product taps =
                bytes(name + ".depthwise", hidden, ranges.positive(name + ".project"), filtered);
            blocks_.push_back({in.quantizer(), expand.matrix(convs.shape(name + ".expand")),
                               taps.taps(), floats(name + ".project", filtered)});
        }
        add_fusion(model.config.ffm_dense, convs, ranges);
        int8::Steps in = int8::steps(ranges.positive(dsconv_name(0) + ".depthwise"));
        for (int i = 0; i < 2; ++i) {
            const std::string name = dsconv_name(i);
            const std::string next = i == 0 ? dsconv_name(1) + ".depthwise" : "classifier.conv";
            int8::Steps filtered;
            const int8::Product taps =
                bytes(name + ".depthwise", in, ranges[name + ".pointwise"], filtered);
            const int8::Product weight =
                bytes(name + ".pointwise", filtered, ranges.positive(next), in);
            dsconvs_.push_back({taps.taps(), weight.matrix(convs.shape(name + ".pointwise"))});
        }
        last_.push_back(floats("classifier.conv", in));
    }

    int64_t bottleneck(int i, Map x, float* y, Call call) const override {
        const Block& b = blocks_[i];
        float* floats = i > 0 ? x.floats() : nullptr;
        return kernels_.inverted_residual({floats, x.bytes(), x.batch, x.h, x.w,
                                           kBottlenecks[i].stride, b.in,
                                           b.expand.view(), b.taps.view(), b.project.view(),
                                           i % 3 > 0, y, call.pool, call.threads, call.scratch});
    }

    int64_t fusion(Map high, const float* low, const Axis& rows, const Axis& cols, void* fused,
                   Call call) const override {
        return kernels_.feature_fusion({high.bytes(), low, high.batch, 128, 64, view(rows),
                                        view(cols), low_in_,
                                        taps_.empty() ? TapsInt8{} : taps_[0].view(), dilation_,
                                        fusion_[0].view(), static_cast<uint8_t*>(fused),
                                        call.pool, call.threads, call.scratch});
    }

    int64_t classifier(Map fused, float* scores, Call call) const override {
        const Dsconv &first = dsconvs_[0], &second = dsconvs_[1];
        return kernels_.classifier({fused.bytes(), fused.batch, fused.h, fused.w,
                                    first.taps.view(), first.weight.view(), second.taps.view(),
                                    second.weight.view(), last_[0].view(), scores, call.pool,
                                    call.threads, call.scratch});
    }

    const Quantizer* bytes() const override { return &blocks_[0].in; }

  private:
    struct Block {
        Quantizer in;
        PackedMatrixInt8 expand;
        PackedTapsInt8 taps;
        PackedMatrixInt8 project;
    };
    struct Dsconv {
        PackedTapsInt8 taps;
        PackedMatrixInt8 weight;
    };

    void add_fusion(bool dense, const Convs& convs, const Ranges& ranges) {
        const std::string fusion = "feature_fusion.";
        const int8::Steps high = int8::steps(ranges.positive(bottleneck_name(0) + ".expand"));
        int8::Steps low = int8::steps(ranges.positive(fusion + "low")), filtered = low, fused;
        if (!dense) {
            low = int8::steps(ranges[fusion + "depthwise"]);
            taps_.push_back(int8::to_bytes(convs.shape(fusion + "depthwise"),
                                           convs.conv(fusion + "depthwise"), low,
                                           ranges[fusion + "low"], filtered)
                                .taps());
        }
        low_in_ = low.quantizer();
        const int8::Joined both(convs.shape(fusion + "low"), convs.conv(fusion + "low"), filtered,
                                convs.shape(fusion + "high"), convs.conv(fusion + "high"), high);
        fusion_.push_back(int8::to_bytes(both.shape, both.conv(), filtered,
                                         ranges.positive(dsconv_name(0) + ".depthwise"), fused)
                              .matrix(both.shape));
    }

    const KernelsInt8& kernels_;
    std::vector<Block> blocks_;
    std::vector<Dsconv> dsconvs_;
    std::vector<PackedTapsInt8> taps_;  // of the fusion: one, or none
    std::vector<PackedMatrixInt8> fusion_, last_;  // one each
    Quantizer low_in_;
    int dilation_;
};

}  // namespace

std::unique_ptr<Trunk> make_float_trunk(const NetworkConfig& config, const Convs& convs,
                                        const std::string& isa) {
    return std::make_unique<FloatTrunk>(config, convs, isa);
}

std::unique_ptr<Trunk> make_int8_trunk(const Model& model, const Convs& convs,
                                       const std::string& isa) {
    return std::make_unique<Int8Trunk>(model, convs, isa);
}

}  // namespace fastscnn
