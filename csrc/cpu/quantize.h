// Int8 weights of the trunk from folded ones and ranges: the arithmetic of
// fastscnn_kernels/reference_int8.py in float64, so that the integers are the same.
#pragma once

#include "model.h"
#include "packed_int8.h"

namespace fastscnn::int8 {

// Bytes for values of a range: q = round(v / step) + zero.
struct Steps {
    double inverse;  // 1 / step, a float's value
    int zero;

    double step() const { return 1 / inverse; }
    Quantizer quantizer() const { return {float(inverse), zero}; }
};

// A step of at least `at_least`.
Steps steps(const Range& range, double at_least = 0);

// A convolution of bytes that stand for values by `source`; see MatrixInt8.
struct Product {
    std::vector<int8_t> weight;
    std::vector<int32_t> start;
    std::vector<float> scale;
    std::vector<float> bias;  // empty: to bytes

    PackedMatrixInt8 matrix(const ConvShape& shape) const;
    PackedTapsInt8 taps() const;
};

Product to_floats(const ConvShape& shape, const Conv& conv, const Steps& source);

// To bytes of values in `range`, which `target` is set to.
Product to_bytes(const ConvShape& shape, const Conv& conv, const Steps& source, const Range& range,
                 Steps& target);

// Two 1x1 convolutions whose sum is wanted, side by side as one: the second's weights are scaled as
// if its inputs had the steps of the first's. Both are of zero 0.
struct Joined {
    ConvShape shape;
    std::vector<float> weight, bias;

    Joined(const ConvShape& first_shape, const Conv& first, const Steps& first_source,
           const ConvShape& second_shape, const Conv& second, const Steps& second_source);
    Conv conv() const { return {weight.data(), bias.data()}; }
};

}  // namespace fastscnn::int8
