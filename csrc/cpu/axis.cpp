#include "axis.h"

#include <algorithm>

namespace fastscnn {

Axis::Axis(int in, int out, bool align_corners)
    : in(in), out(out), index(out), w0(out), w1(out), first(in + 1, 0) {
    const double scale =
        align_corners ? (out > 1 ? double(in - 1) / (out - 1) : 0.0) : double(in) / out;
    for (int i = 0; i < out; ++i) {
        const double at = align_corners ? i * scale : std::max((i + 0.5) * scale - 0.5, 0.0);
        const int low = std::min(int(at), in - 1);
        const double t = low + 1 < in ? at - low : 0.0;
        index[i] = low;
        w0[i] = float(1.0 - t);
        w1[i] = float(t);
        ++first[low + 1];
    }
    for (int i = 0; i < in; ++i) first[i + 1] += first[i];
}

ByteAxis::ByteAxis(int in, int out) : in(in), out(out), index(out) {
    // Kernels read whole vectors of weights: 16 more than there are.
    w0.resize(3 * size_t(out) + 16), w1.resize(3 * size_t(out) + 16);
    std::vector<double> t(out);
    const double scale = double(in) / out;
    double largest = 0;
    for (int i = 0; i < out; ++i) {
        const double at = std::max((i + 0.5) * scale - 0.5, 0.0);
        index[i] = std::min(int(at), in - 1);
        t[i] = index[i] + 1 < in ? at - index[i] : 0.0;
        largest = std::max({largest, t[i], 1 - t[i]});
    }
    while (int(0.5 + largest * (2 << bits)) < 1 << 15) ++bits;
    for (int i = 0; i < 3 * out; ++i) {
        w0[i] = int16_t(0.5 + (1 - t[i / 3]) * (1 << bits));
        w1[i] = int16_t(0.5 + t[i / 3] * (1 << bits));
    }
}

}  // namespace fastscnn
