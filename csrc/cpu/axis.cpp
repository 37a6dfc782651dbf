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

}  // namespace fastscnn
