// Vectors of floats: the compiler's vector extensions, with the few operations they lack.
//
// Everything here lives in the namespace of one instruction set, so that the same names compiled
// with different flags never meet in the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastscnn::FASTSCNN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#define FASTSCNN_INLINE inline __attribute__((always_inline))

using Vec = float __attribute__((vector_size(4 * kLanes)));
using VecInt = int32_t __attribute__((vector_size(4 * kLanes)));

// For short runs, such as the pixels of a x8 cell: eight floats at most. A compiler takes vectors
// that are wider than its registers apart into single elements where it comes to selections.
constexpr int kShort = kLanes < 8 ? kLanes : 8;
using Short = float __attribute__((vector_size(4 * kShort)));
using ShortInt = int32_t __attribute__((vector_size(4 * kShort)));
using ShortByte = uint8_t __attribute__((vector_size(kShort)));

template <class V>
FASTSCNN_INLINE V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
FASTSCNN_INLINE void store(float* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

// The first n floats at p, then `rest`.
template <class V>
FASTSCNN_INLINE V load_first(const float* p, int n, float rest) {
    V v = V{} + rest;
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}

template <class V>
FASTSCNN_INLINE void store_first(float* p, V v, int n) {
    std::memcpy(p, &v, n * sizeof(float));
}

// Keeps a compiler from loading v anew for each of its uses.
FASTSCNN_INLINE Vec in_register(Vec v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__AVX2__)
    asm("" : "+x"(v));
#endif
    return v;
}

// The second operand where one is NaN, like the machine's own instruction.
template <class V>
FASTSCNN_INLINE V max(V a, V b) {
    return a > b ? a : b;
}

template <class V>
FASTSCNN_INLINE V min(V a, V b) {
    return a < b ? a : b;
}

FASTSCNN_INLINE float max_of(Short v) {
    float best = v[0];
    for (int i = 1; i < kShort; ++i) best = v[i] > best ? v[i] : best;
    return best;
}

// The nearest bfloat16, ties to even; finite values only.
FASTSCNN_INLINE uint16_t bfloat16(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Bit i is the sign of lane i: turns a comparison into a set.
FASTSCNN_INLINE uint32_t bits(ShortInt mask) {
#if defined(__AVX2__)
    return uint32_t(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
    return uint32_t(_mm_movemask_ps((__m128)mask));
#else
    uint32_t set = 0;
    for (int i = 0; i < kShort; ++i) set |= (uint32_t(mask[i]) >> 31) << i;
    return set;
#endif
}

// e^x within 2 ulp for x in -87..0; 0 below.
template <class V>
FASTSCNN_INLINE V exp_negative(V x) {
    using Int = decltype(x < x);
    const V zero = {};
    const V shift = zero + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    const V n = (x * 1.44269504f + shift) - shift;
    const V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const Int power = (__builtin_convertvector(n, Int) + 127) << 23;
    V scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -87.f ? zero : p * scale;
}

#if defined(__AVX512F__)
// The same by AVX-512's own rounding and scaling, in half as many instructions; within
// 2e-7 (1 + |x| / 8) of e^x, relatively.
FASTSCNN_INLINE Vec exp_negative(Vec x) {
    const Vec y = x * 1.44269504f;
    const Vec n = (Vec)_mm512_maskz_roundscale_ps(0xffff, (__m512)y, _MM_FROUND_TO_NEAREST_INT);
    const Vec r = (Vec)_mm512_fmsub_ps((__m512)x, _mm512_set1_ps(1.44269504f), (__m512)n);
    Vec p = Vec{} + 1.5403530e-4f;
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.f;
    return (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
}
#endif

// Natural logarithm within 2 ulp of finite x >= 1; of NaN NaN.
template <class V>
FASTSCNN_INLINE V log_from_one(V x) {
    using Int = decltype(x < x);
    Int raw;
    std::memcpy(&raw, &x, sizeof raw);
    // x = 2^n * f with f in sqrt(1/2)..sqrt(2); log f = 2 atanh((f - 1) / (f + 1)).
    const Int n = (raw - 0x3f3504f3) >> 23;
    const Int rest = raw - (n << 23);
    V f;
    std::memcpy(&f, &rest, sizeof f);
    const V s = (f - 1.f) / (f + 1.f), q = s * s;
    const V series = 2.f * s + 2.f * s * q * (1.f / 3 + q * (1.f / 5 + q * (1.f / 7 + q / 9.f)));
    const V log = __builtin_convertvector(n, V) * 0.693147181f + series;
    return x == x ? log : x;
}

}  // namespace fastscnn::FASTSCNN_ISA
