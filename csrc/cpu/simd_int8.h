// Vectors of sixteen int32 sums of byte products, and what goes with them.
//
// Bytes of a block of 64 channels become four vectors of sums in "lane order", the one that
// interleaving gives and packing undoes: vector j, lane 4 * i + l is channel 16 * i + 4 * j + l.
#pragma once

#include "kernels.h"
#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastscnn::FASTSCNN_ISA {

constexpr int kSums = 16;  // in a vector, whatever the registers

// Sixteen sums are one vector with AVX-512; elsewhere four, in a struct. MM(name) is the intrinsic
// of that name. (Compilers keep a struct of vectors in memory, which AVX-512 would pay for most.)
#if defined(__AVX512BW__)
using Piece = __m512i;
using Int16 = int32_t __attribute__((vector_size(64)));
#define MM(name) _mm512_##name
FASTSCNN_INLINE Piece get(const Int16& x, int) { return (Piece)x; }
FASTSCNN_INLINE void set(Int16& x, int, Piece v) { x = (Int16)v; }
#else
#if defined(__SSE2__)
using Piece = __m128i;
#define MM(name) _mm_##name
#else
using Piece = int32_t __attribute__((vector_size(16)));
#endif
struct Int16 {
    Piece v[4];
};
FASTSCNN_INLINE Piece get(const Int16& x, int i) { return x.v[i]; }
FASTSCNN_INLINE void set(Int16& x, int i, Piece v) { x.v[i] = v; }
#endif

constexpr int kPiece = sizeof(Piece);
constexpr int kPieces = 64 / kPiece;

using Float16 = float __attribute__((vector_size(64)));
using Byte16 = uint8_t __attribute__((vector_size(16)));

template <class V, class T>
FASTSCNN_INLINE V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

FASTSCNN_INLINE Float16 to_floats(const Int16& sum) {
    using Sums = int32_t __attribute__((vector_size(64)));
    return __builtin_convertvector(load_as<Sums>(&sum), Float16);
}

#if defined(MM)

// The same four bytes in every lane.
FASTSCNN_INLINE Int16 splat4(const uint8_t* p) {
    Int16 to;
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) set(to, i, MM(set1_epi32)(load_as<int32_t>(p)));
    return to;
}

// sum + the four products of bytes of each lane: unsigned of a, signed of b.
FASTSCNN_INLINE Int16 dot4(Int16 sum, const Int16& a, const Int16& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
        const Piece ai = get(a, i), bi = get(b, i);
#if defined(__AVX512VNNI__)
        set(sum, i, _mm512_dpbusd_epi32(get(sum, i), ai, bi));
#else
        // Even and odd bytes apart, as 16 bits.
        const Piece even = MM(madd_epi16)(MM(srli_epi16)(MM(slli_epi16)(ai, 8), 8),
                                          MM(srai_epi16)(MM(slli_epi16)(bi, 8), 8));
        const Piece odd = MM(madd_epi16)(MM(srli_epi16)(ai, 8), MM(srai_epi16)(bi, 8));
        set(sum, i, MM(add_epi32)(get(sum, i), MM(add_epi32)(even, odd)));
#endif
    }
    return sum;
}

// Lane by lane (row 0, row 1, row 2, 0) of 64 channels, in lane order.
FASTSCNN_INLINE void interleave(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2,
                                Int16 to[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
        const Piece zero = {};
        const Piece a = load_as<Piece>(r0 + i * kPiece), b = load_as<Piece>(r1 + i * kPiece),
                    c = load_as<Piece>(r2 + i * kPiece);
        const Piece ab0 = MM(unpacklo_epi8)(a, b), ab1 = MM(unpackhi_epi8)(a, b);
        const Piece c0 = MM(unpacklo_epi8)(c, zero), c1 = MM(unpackhi_epi8)(c, zero);
        set(to[0], i, MM(unpacklo_epi16)(ab0, c0));
        set(to[1], i, MM(unpackhi_epi16)(ab0, c0));
        set(to[2], i, MM(unpacklo_epi16)(ab1, c1));
        set(to[3], i, MM(unpackhi_epi16)(ab1, c1));
    }
}

// round(sum * scale) limited to 0..255, ties to even; |sum * scale| < 2^31.
FASTSCNN_INLINE void store_bytes(uint8_t* to, const Int16 sum[4], const float* scale) {
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
        Piece q[4];
        for (int j = 0; j < 4; ++j) {
            const float* s = scale + j * kSums + i * kPiece / 4;
            q[j] = MM(cvtps_epi32)(MM(mul_ps)(MM(cvtepi32_ps)(get(sum[j], i)), MM(loadu_ps)(s)));
        }
        const Piece bytes =
            MM(packus_epi16)(MM(packs_epi32)(q[0], q[1]), MM(packs_epi32)(q[2], q[3]));
        std::memcpy(to + i * kPiece, &bytes, kPiece);
    }
}

// round(v) + zero limited to 0..255.
FASTSCNN_INLINE Byte16 to_bytes(Float16 v, int zero) {
#if defined(__AVX512BW__)
    const __m512i q =
        _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps((__m512)v, _mm512_set1_ps(512.f))),
                         _mm512_set1_epi32(zero));
    return (Byte16)_mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
#else
    __m128i q[4];
    for (int i = 0; i < 4; ++i) {
        const __m128 part = load_as<__m128>(reinterpret_cast<const float*>(&v) + 4 * i);
        q[i] = _mm_add_epi32(_mm_cvtps_epi32(_mm_min_ps(part, _mm_set1_ps(512.f))),
                             _mm_set1_epi32(zero));
    }
    return (Byte16)_mm_packus_epi16(_mm_packs_epi32(q[0], q[1]), _mm_packs_epi32(q[2], q[3]));
#endif
}

#undef MM

#else

FASTSCNN_INLINE Int16 splat4(const uint8_t* p) {
    Int16 to;
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) to.v[i] = Piece{} + load_as<int32_t>(p);
    return to;
}

FASTSCNN_INLINE Int16 dot4(Int16 sum, const Int16& a, const Int16& b) {
    using Shorts = int16_t __attribute__((vector_size(16)));
    using Words = uint16_t __attribute__((vector_size(16)));
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
        // Even and odd bytes apart: a product of 255 * 127 fits 16 bits.
        const Piece even = (Piece)((Shorts)((Words)a.v[i] & 255) * (((Shorts)b.v[i] << 8) >> 8));
        const Piece odd = (Piece)((Shorts)((Words)a.v[i] >> 8) * ((Shorts)b.v[i] >> 8));
        sum.v[i] += ((even << 16) >> 16) + (even >> 16) + ((odd << 16) >> 16) + (odd >> 16);
    }
    return sum;
}

FASTSCNN_INLINE void interleave(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2,
                                Int16 to[4]) {
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < 4; ++l) {
                const int c = 16 * i + 4 * j + l;
                to[j].v[i][l] = r0[c] | r1[c] << 8 | r2[c] << 16;
            }
}

// Ties to even: adding 1.5 * 2^23 leaves an integer.
FASTSCNN_INLINE int32_t rounded(float v, float low, float high) {
    v = v < low ? low : v > high ? high : v;
    const float shifted = v + 12582912.f;
    return int32_t(shifted - 12582912.f);
}

FASTSCNN_INLINE void store_bytes(uint8_t* to, const Int16 sum[4], const float* scale) {
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < 4; ++l)
                to[16 * i + 4 * j + l] = uint8_t(
                    rounded(float(sum[j].v[i][l]) * scale[j * kSums + 4 * i + l], 0.f, 255.f));
}

FASTSCNN_INLINE Byte16 to_bytes(Float16 v, int zero) {
    Byte16 to;
    for (int i = 0; i < kSums; ++i) {
        const int q = rounded(v[i], -512.f, 512.f) + zero;
        to[i] = uint8_t(q < 0 ? 0 : q > 255 ? 255 : q);
    }
    return to;
}

#endif

// Bytes of `pixels` pixels, `stride` bytes apart; each is padded with zeros to `pitch`.
FASTSCNN_INLINE void quantize(const float* x, int pixels, int channels, const Quantizer& q,
                              uint8_t* to, int64_t stride, int pitch) {
    for (int p = 0; p < pixels; ++p, x += channels, to += stride) {
        int c = 0;
        for (; c + kSums <= channels; c += kSums) {
            const Byte16 v = to_bytes(load_as<Float16>(x + c) * q.inverse, q.zero);
            std::memcpy(to + c, &v, sizeof v);
        }
        if (c < channels) {
            const Byte16 v =
                to_bytes(load_first<Float16>(x + c, channels - c, 0.f) * q.inverse, q.zero);
            std::memcpy(to + c, &v, channels - c);
        }
        if (channels < pitch) std::memset(to + channels, 0, pitch - channels);
    }
}

}  // namespace fastscnn::FASTSCNN_ISA
