// Bilinear sampling along one axis, as tables.
#pragma once

#include <cstdint>
#include <vector>

namespace fastscnn {

// Output index i reads w0[i] * in[index[i]] + w1[i] * in[index[i] + 1]; at the end of the axis,
// where there is no second element, w1 is 0 and readers must not touch it (see `cells`).
struct Axis {
    int in = 0;
    int out = 0;
    std::vector<int> index;  // [out], ascending
    std::vector<float> w0;   // [out]
    std::vector<float> w1;   // [out]
    std::vector<int> first;  // [in + 1]: outputs first[i] .. first[i + 1] - 1 have index i

    Axis() = default;
    // The sampling of torch.nn.functional.interpolate, with weights rounded once from double.
    Axis(int in, int out, bool align_corners);
};

// The same for bytes, as torch.nn.functional.interpolate samples uint8 (align_corners False): an
// axis at a time, with integer weights as fine as 16 bits allow, rounded to bytes after each.
struct ByteAxis {
    int in = 0;
    int out = 0;
    std::vector<int> index;
    std::vector<int16_t> w0, w1;  // each weight thrice, for the channels of a pixel
    int bits = 0;

    ByteAxis() = default;
    ByteAxis(int in, int out);
};

}  // namespace fastscnn
