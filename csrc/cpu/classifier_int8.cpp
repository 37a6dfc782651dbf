// classifier_int8: two depthwise separable convolutions of bytes and a 1x1 to class scores.

#include "gemm_int8.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Bands per thread: smaller ones share the work more evenly, and repeat two rows of the first
// convolution each.
constexpr int kBands = 2;

struct Pieces {
    uint8_t* between;  // three rows of the map between the convolutions, [w, taps2.pitch]
    uint8_t* mid;      // [kRunInt8, widest taps]
    uint8_t* last;     // [kRunInt8, blocks of the second's outputs]
    uint8_t* outside;  // a pixel of zeros
};

}  // namespace

// A unit is a band of output rows. Three rows of the map between the convolutions stay in L2 (0.1
// MB for a map 256 wide with 128 channels). Bound by the products.
int64_t classifier_int8(const ClassifierInt8Params& p) {
    const int pitch1 = p.taps1.pitch, pitch2 = p.taps2.pitch, wide = blocks(p.weight2.out);
    const int pitch = pitch1 > pitch2 ? pitch1 : pitch2;
    const int64_t row_bytes = int64_t(p.w) * pitch2;
    const auto layout = [&](Arena& arena) {
        return Pieces{take_bytes(arena, 3 * row_bytes), take_bytes(arena, kRunInt8 * pitch),
                      take_bytes(arena, kRunInt8 * wide), take_bytes(arena, pitch)};
    };
    Arena count{nullptr};
    layout(count);
    if (!p.scratch) return p.threads * count.used;

    const int bands = p.threads == 1 ? 1 : p.h < kBands * p.threads ? p.h : kBands * p.threads;
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * count.used};
        const Pieces at = layout(arena);
        std::memset(at.outside, 0, pitch);
        const int n = unit / bands;
        const Share band(p.h, unit % bands, bands);
        const uint8_t* image = p.x + int64_t(n) * p.h * p.w * pitch1;
        DepthwiseRowInt8 first = {{}, {}, at.outside, p.w, p.taps1, 1, 1, nullptr, 0};
        DepthwiseRowInt8 second = {{}, {}, at.outside, p.w, p.taps2, 1, 1, nullptr, 0};
        int next = band.begin > 0 ? band.begin - 1 : 0;  // first row between that is not made
        for (int y = band.begin; y < band.end; ++y) {
            for (; next <= y + 1 && next < p.h; ++next) {
                for (int ky = 0; ky < 3; ++ky)
                    set_row(first, ky, image + int64_t(next + ky - 1) * p.w * pitch1,
                            next + ky - 1, p.h);
                dsconv_row_int8(first, p.weight1, 0, p.w, at.mid,
                                at.between + next % 3 * row_bytes, pitch2);
            }
            for (int ky = 0; ky < 3; ++ky)
                set_row(second, ky, at.between + (y + ky + 2) % 3 * row_bytes, y + ky - 1, p.h);
            float* out = p.y + (int64_t(n) * p.h + y) * p.w * p.last.out;
            for (int x = 0; x < p.w; x += kRunInt8, out += kRunInt8 * p.last.out) {
                const int end = p.w - x < kRunInt8 ? p.w : x + kRunInt8;
                dsconv_row_int8(second, p.weight2, x, end, at.mid, at.last, wide);
                gemm_int8({at.last, wide, p.last, nullptr, out, p.last.out, nullptr, 0},
                          end - x);
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
