// Runs every operation once on seeded numbers and writes the results to stdout as floats. Needs
// nothing but C's library, so that a cross compiler can build it for any machine.

#include <cstdio>
#include <cstdlib>
#include <new>

#include "axis.h"
#include "kernels.h"

void* operator new(size_t n) { return std::malloc(n); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
#ifdef _LIBCPP_VERSION
namespace std {
inline namespace __1 {  // what libc++ calls where a vector would throw
[[noreturn]] void __libcpp_verbose_abort(const char*, ...) noexcept { abort(); }
}  // namespace __1
}  // namespace std
#endif

namespace fastscnn {

// One thread; the scratch memory is laid out for three, as some operations then work differently.
Pool::Pool() : state_(nullptr) {}
Pool::~Pool() {}
void Pool::run(int, int units, Body body, const void* context) {
    for (int unit = 0; unit < units; ++unit) body(context, unit, unit % 3);
}

namespace FASTSCNN_ISA {
extern const Kernels kernels;
}

namespace {

const Kernels& k = FASTSCNN_ISA::kernels;
constexpr Activation kNone = {-__builtin_inff(), __builtin_inff()};
constexpr Activation kRelu = {0.f, __builtin_inff()};
constexpr int kThreads = 3;
Pool pool;

float* floats(int64_t n) {
    return static_cast<float*>(std::aligned_alloc(64, size_t(n * 4 + 63) / 64 * 64));
}

// Numbers in -1..1, the same everywhere.
float* random(int64_t n) {
    static uint32_t state = 1;
    float* p = floats(n);
    for (int64_t i = 0; i < n; ++i) {
        state = state * 1664525u + 1013904223u;
        p[i] = float(int32_t(state) >> 8) / float(1 << 23);
    }
    return p;
}

Matrix matrix(int out, int inputs, int taps = 1) {
    const float *weight = random(int64_t(out) * inputs * taps), *bias = random(out);
    const int64_t n = k.pack_matrix(weight, bias, out, inputs, taps, nullptr);
    float* data = floats(n);
    k.pack_matrix(weight, bias, out, inputs, taps, data);
    return {data, data + n - (out + k.lanes - 1) / k.lanes * k.lanes, inputs * taps, out};
}

Taps taps(int channels) {
    const int pitch = (channels + k.lanes - 1) / k.lanes * k.lanes;
    float *data = floats(10 * int64_t(pitch)), *values = random(10 * int64_t(channels));
    for (int i = 0; i < 10; ++i)
        for (int c = 0; c < pitch; ++c)
            data[i * pitch + c] = c < channels ? values[i * channels + c] : 0.f;
    return {data, data + 9 * int64_t(pitch), channels, pitch};
}

AxisView view(const Axis& a) {
    return {a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.first.data()};
}

template <class Params>
void run(int64_t (*kernel)(const Params&), Params p, const float* y, int64_t n) {
    p.pool = &pool, p.threads = kThreads, p.scratch = nullptr;
    p.scratch = floats(kernel(p));
    kernel(p);
    std::fwrite(y, sizeof(float), size_t(n), stdout);
}

void convolutions() {
    uint8_t frame[2 * 45 * 131 * 3];
    for (size_t i = 0; i < sizeof frame; ++i) frame[i] = uint8_t(i * 7919 >> 3);
    StemParams stem{};
    stem.frame = frame, stem.batch = 2, stem.h = 45, stem.w = 131, stem.top = 1, stem.left = 1;
    stem.out_h = 23, stem.out_w = 66, stem.weight = matrix(32, 3, 9), stem.act = kRelu;
    for (int i = 0; i < 3; ++i) stem.scale[i] = 0.01f, stem.shift[i] = -1.f;
    float* y = floats(2 * 23 * 66 * 32);
    stem.y = y;
    run(k.stem_conv, stem, y, 2 * 23 * 66 * 32);

    DownsampleParams down{};
    down.stem = stem, down.taps1 = taps(32), down.weight1 = matrix(48, 32);
    down.taps2 = taps(48), down.weight2 = matrix(64, 48), down.mid_act = kNone, down.act = kRelu;
    down.y = y;
    run(k.learning_to_downsample, down, y, 2 * 6 * 17 * 64);

    for (const int stride : {1, 2}) {
        const int h = 9, w = 61, outs = ((h - 1) / stride + 1) * ((w - 1) / stride + 1);
        const float* x = random(h * w * 30);
        float* y = floats(h * w * 70);
        run(k.depthwise_conv, {x, 1, h, w, stride, 2, taps(30), kRelu, y}, y, outs * 30);
        run(k.pointwise_conv, {x, nullptr, h * w, matrix(70, 30), kRelu, y}, y, h * w * 70);
        const Matrix last = stride == 1 ? matrix(19, 70) : Matrix{};
        run(k.dsconv, {x, 1, h, w, stride, 1, taps(30), kNone, matrix(70, 30), kRelu, last, y}, y,
            outs * (stride == 1 ? 19 : 70));
        for (const int height : {h, 1}) {  // shared by rows, and one band
            const int64_t n = int64_t((height - 1) / stride + 1) * ((w - 1) / stride + 1) * 30;
            run(k.inverted_residual,
                {x, 1, height, w, stride, matrix(180, 30), taps(180), matrix(30, 180), kRelu,
                 stride == 1, y},
                y, n);
        }
    }
}

void pooling_and_fusion() {
    const Axis rows(7, 28, false), cols(13, 51, true);
    const float *low = random(7 * 13 * 40), *high = random(28 * 51 * 20);
    float* y = floats(28 * 51 * 48);
    FeatureFusionParams fusion{high, low, 1, view(rows), view(cols), taps(40), 4};
    fusion.low_weight = matrix(48, 40), fusion.high_weight = matrix(48, 20), fusion.y = y;
    run(k.feature_fusion, fusion, y, 28 * 51 * 48);

    for (const int kernel : {1, 3}) {
        PyramidPoolParams p{low, 1, 7, 13, 40, 2};
        const Axis r1(1, 7, false), c1(1, 13, false), r3(3, 7, false), c3(3, 13, false);
        p.bins[0] = 1, p.rows[0] = view(r1), p.cols[0] = view(c1), p.branch[0] = matrix(10, 40);
        p.bins[1] = 3, p.rows[1] = view(r3), p.cols[1] = view(c3), p.branch[1] = matrix(10, 40);
        p.slice[0] = matrix(48, 10), p.slice[1] = matrix(48, 10);
        p.offset[0] = 40, p.offset[1] = 50, p.offset[2] = 0;
        p.join_kernel = kernel, p.join = kernel == 1 ? matrix(48, 40) : matrix(48, 60, 9);
        p.y = y;
        run(k.pyramid_pool, p, y, 7 * 13 * 48);
    }
}

void heads() {
    const Axis rows(7, 50, false), cols(13, 104, false);
    for (const int classes : {3, 19}) {
        const float* scores = random(7 * 13 * classes);
        float *y = floats(50 * 104 * classes), *top = floats(50 * 104);
        for (const bool softmax : {false, true})
            run(k.dense_head, {scores, y, 1, classes, softmax, view(rows), view(cols)}, y,
                50 * 104 * classes);
        uint8_t labels[50 * 104];
        k.argmax_head({scores, labels, top, 1, classes, view(rows), view(cols), &pool, kThreads});
        std::fwrite(top, sizeof(float), 50 * 104, stdout);
        for (int i = 0; i < 50 * 104; ++i) y[i] = labels[i];
        std::fwrite(y, sizeof(float), 50 * 104, stdout);
    }
}

}  // namespace
}  // namespace fastscnn

int main() {
    fastscnn::convolutions();
    fastscnn::pooling_and_fusion();
    fastscnn::heads();
}
