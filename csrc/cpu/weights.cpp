#include "weights.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace fastscnn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Activation kNoActivation = {-kInfinity, kInfinity};
constexpr Activation kReluActivation = {0.f, kInfinity};

// The join's columns for one of its inputs: weight [out][inputs] of channels first .. first + n - 1.
PackedMatrix slice(const Convs& convs, int first, int n, bool bias, const std::string& isa) {
    const std::string name = "global_feature_extractor.ppm.join";
    const Conv& join = convs.conv(name);
    const auto [out, inputs] = std::pair(convs.shape(name).out, convs.shape(name).inputs);
    std::vector<float> weight, zeros(out);
    for (int o = 0; o < out; ++o) {
        const float* row = join.weight + int64_t(o) * inputs + first;
        weight.insert(weight.end(), row, row + n);
    }
    return {weight.data(), bias ? join.bias : zeros.data(), out, n, 1, isa};
}

// The instruction set of what is not in int8: the machine's best unless one is named.
std::string floats(const Model& model, const std::string& isa) {
    const std::vector<const Kernels*> found = available_kernels_bf16();
    const bool rounded = model.bfloat16 || !model.ranges.empty();
    return isa.empty() && rounded && !found.empty() ? found[0]->name : isa;
}

}  // namespace

StemAxis::StemAxis(int in, int padding) {
    int after = before = padding;
    if (padding == kSamePadding) {  // TensorFlow's rule: the odd one goes to the end
        const int total = std::max((in + 1) / 2 * 2 + 1 - in, 0);
        before = total / 2, after = total - before;
    }
    out = (in + before + after - 3) / 2 + 1;
}

Convs::Convs(const Model& model) : shapes_(conv_shapes(model.config)) {
    model.config.check();
    if (model.convs.size() != shapes_.size())
        throw std::invalid_argument("the model has " + std::to_string(model.convs.size()) +
                                    " convolutions: expected " + std::to_string(shapes_.size()));
    for (size_t i = 0; i < shapes_.size(); ++i)
        convs_[shapes_[i].name] = {&shapes_[i], &model.convs[i]};
}

PackedMatrix Convs::matrix(const std::string& name, const std::string& isa) const {
    const ConvShape& s = shape(name);
    return {conv(name).weight, conv(name).bias, s.out, s.inputs, s.kernel * s.kernel, isa};
}

PackedTaps Convs::taps(const std::string& name, const std::string& isa) const {
    return {conv(name).weight, conv(name).bias, shape(name).out, isa};
}

Weights::Weights(const Model& model, const std::string& isa)
    : Weights(model, Convs(model),
              model.ranges.empty()
                  ? make_float_trunk(model.config, Convs(model), floats(model, isa))
                  : make_int8_trunk(model, Convs(model), isa),
              floats(model, isa)) {}

Weights::Weights(const Model& model, const Convs& convs, std::unique_ptr<Trunk> trunk,
                 const std::string& isa)
    : config(model.config),
      kernels(find_kernels(isa)),
      trunk(std::move(trunk)),
      stem_(convs.matrix("learning_to_downsample.conv", isa)),
      down_{{convs.taps("learning_to_downsample.dsconv1.depthwise", isa),
             convs.matrix("learning_to_downsample.dsconv1.pointwise", isa)},
            {convs.taps("learning_to_downsample.dsconv2.depthwise", isa),
             convs.matrix("learning_to_downsample.dsconv2.pointwise", isa)}} {
    const std::string pyramid = "global_feature_extractor.ppm.";
    const int width = 128, each = width / kBranches;
    for (int i = 0; i < kBranches; ++i)
        branches_.push_back(convs.matrix(pyramid + "branches." + std::to_string(i), isa));
    const auto first = [&](int bin) {
        int channel = 0;
        for (int b : config.ppm_order) {
            if (b == bin) break;
            channel += b ? each : width;
        }
        return channel;
    };
    if (config.ppm_join_kernel == 1) {
        join_.push_back(slice(convs, first(0), width, true, isa));
        for (int bin : kBins) join_.push_back(slice(convs, first(bin), each, false, isa));
    } else {
        join_.push_back(convs.matrix(pyramid + "join", isa));
        for (int bin : kBins) offsets_.push_back(first(bin));
        offsets_.push_back(first(0));
    }
    if (config.ffm_dense)
        dense_ = std::make_unique<PackedMatrix>(convs.matrix("feature_fusion.depthwise", isa));
}

const char* Weights::precision() const {
    if (trunk->bytes()) return "int8";
    for (const Kernels* k : available_kernels_bf16())
        if (k == &kernels) return "bfloat16";
    return "float32";
}

int64_t Weights::learning_to_downsample(const uint8_t* frame, const float* x, int batch, int h,
                                        int w, void* y, Call call) const {
    StemParams stem{};
    stem.frame = frame, stem.x = x;
    for (int i = 0; i < 3; ++i) {
        stem.scale[i] = float(1 / (255 * config.std[i]));
        stem.shift[i] = float(-config.mean[i] / config.std[i]);
    }
    const StemAxis rows(h, config.stem_padding), cols(w, config.stem_padding);
    stem.batch = batch, stem.h = h, stem.w = w, stem.top = rows.before, stem.left = cols.before;
    stem.out_h = rows.out, stem.out_w = cols.out;
    stem.weight = stem_.view(), stem.act = kReluActivation;
    const Quantizer* to_bytes = trunk->bytes();
    return kernels.learning_to_downsample(
        {stem, down_[0].taps.view(), down_[0].weight.view(), down_[1].taps.view(),
         down_[1].weight.view(), config.dsconv_relu ? kReluActivation : kNoActivation,
         kReluActivation, static_cast<float*>(y), call.pool, call.threads, call.scratch,
         to_bytes ? *to_bytes : Quantizer{}, static_cast<uint8_t*>(y)});
}

int64_t Weights::pyramid_pool(Map x, const std::vector<Axis>& rows, const std::vector<Axis>& cols,
                              float* y, Call call) const {
    PyramidPoolParams p{};
    p.x = x.floats(), p.batch = x.batch, p.h = x.h, p.w = x.w, p.channels = 128;
    p.branches = kBranches;
    for (int i = 0; i < kBranches; ++i) {
        p.bins[i] = kBins[i], p.branch[i] = branches_[i].view();
        p.rows[i] = view(rows[i]), p.cols[i] = view(cols[i]);
        if (config.ppm_join_kernel == 1) p.slice[i] = join_[i + 1].view();
    }
    std::copy(offsets_.begin(), offsets_.end(), p.offset);
    p.join_kernel = config.ppm_join_kernel, p.join = join_[0].view();
    p.y = y, p.pool = call.pool, p.threads = call.threads, p.scratch = call.scratch;
    return kernels.pyramid_pool(p);
}

int64_t Weights::dense(Map x, float* y, Call call) const {
    return kernels.pointwise_conv({x.floats(), nullptr, int64_t(x.batch) * x.h * x.w, dense_->view(),
                                   kNoActivation, y, call.pool, call.threads, call.scratch});
}

}  // namespace fastscnn
