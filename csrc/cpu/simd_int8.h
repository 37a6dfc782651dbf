// Vectors of sixteen int32 sums of byte products, and what goes with them.
//
// Bytes of a block of 64 channels become four vectors of sums in "lane order", the one that
// interleaving gives and packing undoes: vector j, lane 4 * i + l is channel 16 * i + 4 * j + l.
#pragma once

#include "simd.h"

namespace fastscnn::FASTSCNN_ISA {

constexpr int kSums = 16;  // in a vector, whatever the registers

using Int16 = int32_t __attribute__((vector_size(64)));
using Float16 = float __attribute__((vector_size(64)));
using Byte16 = uint8_t __attribute__((vector_size(16)));

template <class V, class T>
FASTSCNN_INLINE V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// The same four bytes in every lane.
FASTSCNN_INLINE Int16 splat4(const uint8_t* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return Int16{} + v;
}

#if defined(__AVX512VNNI__)

// sum + the four products of bytes of each lane: unsigned of a, signed of b.
FASTSCNN_INLINE Int16 dot4(Int16 sum, Int16 a, Int16 b) {
    return (Int16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

// Lane by lane (row 0, row 1, row 2, 0) of 64 channels, in lane order.
FASTSCNN_INLINE void interleave(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2,
                                Int16 to[4]) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i a = _mm512_loadu_si512(r0), b = _mm512_loadu_si512(r1),
                  c = _mm512_loadu_si512(r2);
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i c0 = _mm512_unpacklo_epi8(c, zero), c1 = _mm512_unpackhi_epi8(c, zero);
    to[0] = (Int16)_mm512_unpacklo_epi16(ab0, c0);
    to[1] = (Int16)_mm512_unpackhi_epi16(ab0, c0);
    to[2] = (Int16)_mm512_unpacklo_epi16(ab1, c1);
    to[3] = (Int16)_mm512_unpackhi_epi16(ab1, c1);
}

// round(sum * scale) limited to 0..255, ties to even; |sum * scale| < 2^31.
FASTSCNN_INLINE void store_bytes(uint8_t* to, const Int16 sum[4], const float* scale) {
    __m512i q[4];
    for (int j = 0; j < 4; ++j)
        q[j] = _mm512_cvtps_epi32(
            _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sum[j]), _mm512_loadu_ps(scale + j * kSums)));
    _mm512_storeu_si512(
        to, _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
}

// round(v) + zero limited to 0..255.
FASTSCNN_INLINE Byte16 to_bytes(Float16 v, int zero) {
    const __m512i q =
        _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps((__m512)v, _mm512_set1_ps(512.f))),
                         _mm512_set1_epi32(zero));
    return (Byte16)_mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
}

#else

FASTSCNN_INLINE Int16 dot4(Int16 sum, Int16 a, Int16 b) {
    using Short32 = int16_t __attribute__((vector_size(64)));
    using UShort32 = uint16_t __attribute__((vector_size(64)));
    // Even and odd bytes apart: a product of 255 * 127 fits 16 bits.
    const Short32 even = Short32((UShort32)a & 255) * (((Short32)b << 8) >> 8);
    const Short32 odd = Short32((UShort32)a >> 8) * ((Short32)b >> 8);
    return sum + (((Int16)even << 16) >> 16) + ((Int16)even >> 16) + (((Int16)odd << 16) >> 16) +
           ((Int16)odd >> 16);
}

FASTSCNN_INLINE void interleave(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2,
                                Int16 to[4]) {
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < 4; ++l) {
                const int c = 16 * i + 4 * j + l;
                to[j][4 * i + l] = r0[c] | r1[c] << 8 | r2[c] << 16;
            }
}

// Ties to even: adding 1.5 * 2^23 leaves an integer.
FASTSCNN_INLINE int32_t rounded(float v, float low, float high) {
    v = v < low ? low : v > high ? high : v;
    float shifted = v + 12582912.f;
    return int32_t(shifted - 12582912.f);
}

FASTSCNN_INLINE void store_bytes(uint8_t* to, const Int16 sum[4], const float* scale) {
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < 4; ++l)
                to[16 * i + 4 * j + l] = uint8_t(
                    rounded(float(sum[j][4 * i + l]) * scale[j * kSums + 4 * i + l], 0.f, 255.f));
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

}  // namespace fastscnn::FASTSCNN_ISA
