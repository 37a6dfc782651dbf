// Runs each kernel once on buffers of exactly the documented sizes; built with AddressSanitizer and
// UndefinedBehaviorSanitizer, which watch what the harness' own checks do not.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "common.cuh"
#include "cuda_on_host.h"
#include "kernels.h"

using namespace fastscnn;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Small values of alternating sign; memory starts on a 16-byte boundary.
template <class V>
struct Buffer {
    V* data;
    explicit Buffer(int64_t count) {
        const size_t bytes = count * sizeof(V);
        if (posix_memalign(reinterpret_cast<void**>(&data), 16, bytes)) std::abort();
        for (int64_t i = 0; i < count; ++i) {
            const float v = (i * 37 % 101 - 50) / 400.f;
            if constexpr (sizeof(V) == 2) data[i] = on_host::float_to_half(v);
            else if constexpr (sizeof(V) == 1) data[i] = i * 37;
            else if constexpr (std::is_same_v<V, int>) data[i] = 0;
            else data[i] = v;
        }
        on_host::add_buffer(reinterpret_cast<uintptr_t>(data), bytes);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};
using Halves = Buffer<uint16_t>;
using Floats = Buffer<float>;

int failures = 0;

void expect(const char* what, const std::string& error) {
    std::printf("%s: %s\n", what, error.empty() ? "ok" : error.c_str());
    failures += !error.empty();
    on_host::clear_buffers();
}

void run_argmax_head(int h, int w, int oh, int ow) {
    const int n = 2, classes = 19;
    Halves scores(int64_t(n) * classes * h * w);
    Buffer<uint8_t> labels(int64_t(n) * oh * ow);
    Floats confidence(int64_t(n) * oh * ow);
    for (float* c : {static_cast<float*>(nullptr), confidence.data}) {
        ArgmaxHeadParams p{scores.data, labels.data, c, n, classes, h, w, oh, ow, 0};
        const std::string error = argmax_head(Type::kF16, p, nullptr);
        if (!error.empty() || c) return expect("argmax_head", error);
    }
}

void run_dsconv(int h, int w, int stride, int c, int o, int classes) {
    const int n = 2, oh = (h - 1) / stride + 1, ow = (w - 1) / stride + 1;
    const int cp = round_up(c, 32), op = classes || o > 64 ? 128 : 64, kp = round_up(classes, 32);
    Halves x(int64_t(n) * h * w * c), depthwise(9 * cp), pointwise(int64_t(cp) * op);
    Halves head(128 * (kp + 1)), y(int64_t(n) * oh * ow * (classes ? classes : o));
    Floats bias(cp), last(op), scores(kp + 1);
    DsconvParams p{x.data, depthwise.data, bias.data, pointwise.data, last.data,
                   classes ? head.data : nullptr, scores.data, y.data, n, h, w, c, o, classes, op,
                   kp, oh, ow, stride, 1, -kInfinity, kInfinity, 0.f, kInfinity};
    expect("dsconv", dsconv(Type::kF16, p, nullptr));
}

void run_inverted_residual(int h, int w, int stride, int c, int o) {
    const int n = 1, hidden = round_up(6 * c, 32), width = o <= 64 ? 64 : round_up(o, 32);
    const int oh = (h - 1) / stride + 1, ow = (w - 1) / stride + 1;
    Halves x(int64_t(n) * h * w * c), expand(round_up(c, 16) * hidden), depthwise(9 * hidden);
    Halves project(hidden * width), y(int64_t(n) * oh * ow * o);
    Floats b1(hidden), b2(hidden), b3(width);
    InvertedResidualParams p{};
    p.x = x.data, p.expand = expand.data, p.expand_bias = b1.data;
    p.depthwise = depthwise.data, p.depthwise_bias = b2.data;
    p.project = project.data, p.project_bias = b3.data, p.y = y.data;
    p.n = n, p.h = h, p.w = w, p.c = c, p.o = o, p.hidden_stride = hidden;
    p.oh = oh, p.ow = ow, p.stride = stride, p.residual = stride == 1 && c == o;
    p.low = 0, p.high = 6;
    const InvertedResidualPlan plan = plan_inverted_residual(p);
    Floats partial(plan.partial + 1);
    Buffer<int> counters(plan.counters + 1);
    p.partial = partial.data, p.counters = counters.data;
    expect("inverted_residual", inverted_residual(Type::kF16, p, nullptr));
}

void run_learning_to_downsample(int h, int w) {
    const int n = 1;
    auto half = [](int size) { return (size - 1) / 2 + 1; };
    Buffer<uint8_t> frame(int64_t(n) * h * w * 3);
    Halves stem(32 * 32), d1(9 * 32), p1(32 * 48), d2(9 * 48), p2(48 * 64);
    Floats b0(32), b1(32), b2(48), b3(48), b4(64);
    const int h1 = half(h), w1 = half(w), h2 = half(h1), w2 = half(w1), h3 = half(h2),
              w3 = half(w2);
    Halves y(int64_t(n) * h3 * w3 * 64);
    LearningToDownsampleParams p{};
    p.frame = frame.data;
    for (int i = 0; i < 3; ++i) p.scale[i] = 0.02f, p.shift[i] = -2.f;
    p.stem = stem.data, p.stem_bias = b0.data;
    p.depthwise1 = d1.data, p.depthwise1_bias = b1.data;
    p.pointwise1 = p1.data, p.pointwise1_bias = b2.data;
    p.depthwise2 = d2.data, p.depthwise2_bias = b3.data;
    p.pointwise2 = p2.data, p.pointwise2_bias = b4.data;
    p.y = y.data, p.n = n, p.h = h, p.w = w, p.top = 1, p.left = 1;
    p.h1 = h1, p.w1 = w1, p.h2 = h2, p.w2 = w2, p.h3 = h3, p.w3 = w3;
    p.mid_low = -kInfinity, p.mid_high = kInfinity;
    expect("learning_to_downsample", learning_to_downsample(Type::kF16, p, nullptr));
}

void run_pyramid_pool(int h, int w, int c, int width, int o, int kernel) {
    const int n = 2, wide = round_up(c, 16), narrow = round_up(width, 16), op = round_up(o, 64);
    const int inputs = wide + 4 * narrow;
    Halves x(int64_t(n) * h * w * c), branch(4 * wide * narrow), y(int64_t(n) * h * w * o);
    Halves join(int64_t(kernel) * kernel * inputs * op);
    Floats branch_bias(4 * narrow), join_bias(op), sums(int64_t(n) * h * 12 * c);
    PyramidPoolParams p{x.data, branch.data, branch_bias.data, join.data, join_bias.data, y.data,
                        sums.data, n, h, w, c, width, o, op, kernel, 4, {1, 2, 3, 6}, 0, 0, 0};
    expect("pyramid_pool", pyramid_pool(Type::kF16, p, nullptr));
}

void run_feature_fusion(int h, int w, int lh, int lw, int cl, int dilation) {
    const int n = 1, ch = 64, o = 40, op = 128, wide = round_up(cl, 64);
    Halves high(int64_t(n) * h * w * ch), low(int64_t(n) * lh * lw * cl), taps(9 * wide);
    Halves low_weight(wide * op), high_weight(ch * op), y(int64_t(n) * h * w * o);
    Floats taps_bias(wide), bias(op);
    FeatureFusionParams p{high.data, low.data, dilation ? taps.data : nullptr, taps_bias.data,
                          low_weight.data, high_weight.data, bias.data, y.data, n, h, w, lh, lw,
                          ch, cl, o, op, dilation, 0};
    expect("feature_fusion", feature_fusion(Type::kF16, p, nullptr));
}

}  // namespace

int main() {
    for (unsigned seed : {0u, 3u}) {
        on_host::settings = {seed, 90, 132, 227 * 1024};
        run_argmax_head(5, 9, 40, 72);
        run_argmax_head(7, 13, 19, 31);
        run_dsconv(7, 13, 1, 48, 96, 0);
        run_dsconv(9, 7, 2, 32, 48, 0);
        run_dsconv(1, 1, 1, 128, 128, 19);
        run_inverted_residual(7, 9, 1, 24, 24);
        run_inverted_residual(9, 11, 2, 24, 40);
        run_learning_to_downsample(33, 65);
        run_pyramid_pool(7, 13, 24, 7, 40, 3);
        run_pyramid_pool(1, 1, 8, 32, 128, 1);
        run_feature_fusion(24, 40, 6, 10, 72, 4);
        run_feature_fusion(9, 7, 3, 2, 8, 1);
        run_feature_fusion(1, 1, 1, 1, 8, 0);
    }
    return failures;
}
