#include "quantize.h"

#include <algorithm>
#include <cmath>

namespace fastscnn::int8 {
namespace {

constexpr double kMaxStart = 1 << 24;  // bias in units of a sum: floats up to here are exact
constexpr double kMaxSum = 1 << 30;    // no start lies beyond, so that no sum overflows

int32_t to_int(double value) {
    return value >= -kMaxSum && value <= kMaxSum ? int32_t(value)
           : value > 0                           ? int32_t(kMaxSum)
                                                 : -int32_t(kMaxSum);
}

// Integer weights, their sums and the value of a sum's unit per output channel.
struct Integers {
    std::vector<int8_t> weight;
    std::vector<double> sum, unit;

    Integers(const ConvShape& shape, const Conv& conv, const Steps& source)
        : weight(shape.weights()), sum(shape.out), unit(shape.out) {
        const int64_t each = shape.weights() / shape.out;
        const double step = source.step();
        for (int c = 0; c < shape.out; ++c) {
            const float* w = conv.weight + c * each;
            double largest = 0;
            for (int64_t i = 0; i < each; ++i) largest = std::max(largest, double(std::fabs(w[i])));
            unit[c] = std::max({largest / 127 * step, std::fabs(double(conv.bias[c])) / kMaxStart,
                                1e-30});
            for (int64_t i = 0; i < each; ++i) {
                const double q = std::nearbyint(w[i] * step / unit[c]);
                weight[c * each + i] = int8_t(std::min(std::max(q, -127.0), 127.0));
                sum[c] += weight[c * each + i];
            }
        }
    }
};

}  // namespace

Steps steps(const Range& range, double at_least) {
    const double low = std::min(0.0, range[0]), high = std::max(0.0, range[1]);
    const double step = std::max({(high - low) / 255, at_least, 1e-12});
    const double inverse = float(1 / step);
    return {inverse, to_int(std::nearbyint(-low * inverse))};
}

PackedMatrixInt8 Product::matrix(const ConvShape& shape) const {
    return {weight.data(), start.data(), scale.data(), bias.empty() ? nullptr : bias.data(),
            shape.out,     shape.inputs};
}

PackedTapsInt8 Product::taps() const {
    return {weight.data(), start.data(), scale.data(), int(start.size())};
}

Product to_floats(const ConvShape& shape, const Conv& conv, const Steps& source) {
    Integers q(shape, conv, source);
    Product p{std::move(q.weight), {}, {}, {conv.bias, conv.bias + shape.out}};
    for (int c = 0; c < shape.out; ++c) {
        p.start.push_back(to_int(-source.zero * q.sum[c]));
        p.scale.push_back(float(q.unit[c]));
    }
    return p;
}

Product to_bytes(const ConvShape& shape, const Conv& conv, const Steps& source, const Range& range,
                 Steps& target) {
    Integers q(shape, conv, source);
    target = steps(range, *std::max_element(q.unit.begin(), q.unit.end()));
    Product p{std::move(q.weight), {}, {}, {}};
    for (int c = 0; c < shape.out; ++c) {
        const double bias = conv.bias[c] + target.zero * target.step();
        p.start.push_back(to_int(std::nearbyint(bias / q.unit[c] - source.zero * q.sum[c])));
        p.scale.push_back(float(q.unit[c] * target.inverse));
    }
    return p;
}

Joined::Joined(const ConvShape& first_shape, const Conv& first, const Steps& first_source,
               const ConvShape& second_shape, const Conv& second, const Steps& second_source)
    : shape{first_shape.name, first_shape.out, first_shape.inputs + second_shape.inputs, 1, false} {
    const double ratio = second_source.step() / first_source.step();
    for (int c = 0; c < shape.out; ++c) {
        const float* a = first.weight + int64_t(c) * first_shape.inputs;
        const float* b = second.weight + int64_t(c) * second_shape.inputs;
        weight.insert(weight.end(), a, a + first_shape.inputs);
        for (int i = 0; i < second_shape.inputs; ++i) weight.push_back(float(b[i] * ratio));
        bias.push_back(first.bias[c] + second.bias[c]);
    }
}

}  // namespace fastscnn::int8
