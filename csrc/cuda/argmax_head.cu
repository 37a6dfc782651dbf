#include "argmax_head.cuh"

namespace fastscnn {

namespace {

template <class T, int kRun>
std::string run_argmax_head(ArgmaxHeadParams p, Stream stream) {
    using L = ArgmaxHeadLayout;
    const dim3 grid(ceil_div(p.ow, L::kColumns), ceil_div(p.oh, L::kRows), p.n);
    if (p.confidence)
        return launch("argmax_head", argmax_head_kernel<T, kRun, true>, grid, L::kThreads,
                      L::kBytes, stream, p);
    return launch("argmax_head", argmax_head_kernel<T, kRun, false>, grid, L::kThreads, L::kBytes,
                  stream, p);
}

}  // namespace

std::string argmax_head(Type type, ArgmaxHeadParams p, Stream stream) {
    const int64_t largest = 2 * int64_t(p.ow > p.oh ? p.ow : p.oh) * (p.w > p.h ? p.w : p.h);
    if (largest > INT32_MAX || p.n > 65535)
        throw std::invalid_argument(
            "argmax_head: map or batch too large: 2 x target x source side must stay below 2^31, "
            "the batch below 65536");

    // Eight target pixels span at most one step of the source's columns, and rows are as dense.
    auto dense = [&](int in, int out) {
        return p.align_corners ? 7 * (in - 1) < out - 1 || in == 1 : 7 * in < out;
    };
    const bool runs = dense(p.w, p.ow) && dense(p.h, p.oh);

    if (type == Type::kF16)
        return runs ? run_argmax_head<F16, 8>(p, stream) : run_argmax_head<F16, 1>(p, stream);
    return runs ? run_argmax_head<BF16, 8>(p, stream) : run_argmax_head<BF16, 1>(p, stream);
}

}  // namespace fastscnn
