// Maps in float32 or bfloat16: arithmetic is always on floats.
#pragma once

#include "simd.h"

namespace fastscnn::FASTSCNN_ISA {

struct Bf16 {
    uint16_t bits;
};

using VecBits = uint32_t __attribute__((vector_size(4 * kLanes)));
using VecBf16 = uint16_t __attribute__((vector_size(2 * kLanes)));

FASTSCNN_INLINE Vec widen(VecBf16 v) {
    const VecBits bits = __builtin_convertvector(v, VecBits) << 16;
    Vec wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Rounded to the nearest, to even in between; NaN stays NaN.
FASTSCNN_INLINE VecBf16 narrow(Vec v) {
    VecBits bits;
    std::memcpy(&bits, &v, sizeof bits);
    const VecBits rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const VecBits kept = v == v ? rounded : VecBits{} + 0x7fc00000;
    return __builtin_convertvector(kept >> 16, VecBf16);
}

FASTSCNN_INLINE Vec read(const float* p) { return load<Vec>(p); }
FASTSCNN_INLINE void write(float* p, Vec v) { store(p, v); }
FASTSCNN_INLINE Vec read_first(const float* p, int n) { return load_first<Vec>(p, n, 0.f); }
FASTSCNN_INLINE void write_first(float* p, Vec v, int n) { store_first(p, v, n); }

FASTSCNN_INLINE Vec read(const Bf16* p) {
    VecBf16 v;
    std::memcpy(&v, p, sizeof v);
    return widen(v);
}
FASTSCNN_INLINE void write(Bf16* p, Vec v) {
    const VecBf16 narrowed = narrow(v);
    std::memcpy(p, &narrowed, sizeof narrowed);
}
FASTSCNN_INLINE Vec read_first(const Bf16* p, int n) {
    VecBf16 v = {};
    std::memcpy(&v, p, n * sizeof(Bf16));
    return widen(v);
}
FASTSCNN_INLINE void write_first(Bf16* p, Vec v, int n) {
    const VecBf16 narrowed = narrow(v);
    std::memcpy(p, &narrowed, n * sizeof(Bf16));
}

// For lambdas that must become part of their loop, because they know then that n is a constant.
#define FASTSCNN_LAMBDA __attribute__((always_inline))

// Calls body(c, n) for vectors of channels: n is kLanes, a constant, but for the last.
template <class Body>
FASTSCNN_INLINE void by_vector(int channels, const Body& body) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) body(c, kLanes);
    if (c < channels) body(c, channels - c);
}

template <class T>
FASTSCNN_INLINE Vec read(const T* p, int n) {
    return n == kLanes ? read(p) : read_first(p, n);
}
template <class T>
FASTSCNN_INLINE void write(T* p, Vec v, int n) {
    if (n == kLanes)
        write(p, v);
    else
        write_first(p, v, n);
}

}  // namespace fastscnn::FASTSCNN_ISA
