#include "dsconv.cuh"

namespace fastscnn {

namespace {

template <class T, int kOut>
std::string run_dsconv(DsconvParams p, Stream stream) {
    using L = DsconvLayout<kOut>;
    const int bytes = L::bytes(p.stride, p.dilation, p.head != nullptr);
    const int limit = present_device().shared;
    if (bytes > limit)
        throw std::invalid_argument(
            "dsconv: stride=" + std::to_string(p.stride) +
            ", dilation=" + std::to_string(p.dilation) + (p.head ? ", a head" : "") + " needs " +
            std::to_string(bytes) + " bytes of shared memory, this GPU has " +
            std::to_string(limit));
    const dim3 grid(ceil_div(p.oh, L::kTile) * ceil_div(p.ow, L::kTile), ceil_div(p.o, kOut), p.n);
    auto kernel = p.stride == 1 && p.dilation == 1 ? dsconv_kernel<T, kOut, true>
                                                   : dsconv_kernel<T, kOut, false>;
    return launch("dsconv", kernel, grid, L::kThreads, bytes, stream, p);
}

}  // namespace

std::string dsconv(Type type, DsconvParams p, Stream stream) {
    if (type == Type::kBF16 && present_device().capability < 80)
        throw std::invalid_argument(
            "dsconv: bfloat16 needs compute capability 8.0 or newer; use float16");
    if (p.n > 65535) throw std::invalid_argument("dsconv: a batch of at most 65535 images");
    if (p.head && p.o > 128)
        throw std::invalid_argument("dsconv: a head takes at most 128 channels");

    const bool wide_fits =
        DsconvLayout<128>::bytes(p.stride, p.dilation, false) <= present_device().shared;
    const bool narrow = !p.head && (p.o <= 64 || !wide_fits);
    if (type == Type::kF16)
        return narrow ? run_dsconv<F16, 64>(p, stream) : run_dsconv<F16, 128>(p, stream);
    return narrow ? run_dsconv<BF16, 64>(p, stream) : run_dsconv<BF16, 128>(p, stream);
}

}  // namespace fastscnn
