// What a set of CPU kernels is: one function per operation, compiled once per instruction set.
//
// Sources of kernels include only this header, simd.h and C headers. Templates of the standard
// library would be compiled with, say, AVX-512 and then serve the portable code as well, because
// the linker keeps one copy of an inline function.
#pragma once

#include <cstdint>

namespace fastscnn {

// Bilinear sampling along one axis; see axis.h.
struct AxisView {
    int in;            // source elements
    int out;           // sampled elements
    const int* index;  // [out]
    const float* w0;   // [out]
    const float* w1;   // [out]
    const int* first;  // [in + 1]
};

// Class scores to labels at another size.
struct ArgmaxHeadParams {
    const float* scores;  // [batch, y.in, x.in, classes]
    uint8_t* labels;      // [batch, y.out, x.out]
    float* confidence;    // [batch, y.out, x.out], or null
    int batch;
    int classes;  // 1..255
    AxisView y, x;
    int threads;
};

// Class scores to logits or softmax probabilities at another size.
struct DenseHeadParams {
    const float* scores;  // [batch, y.in, x.in, classes]
    float* out;           // [batch, classes, y.out, x.out]
    float* scratch;       // [threads, classes, x.out]
    int batch;
    int classes;
    bool softmax;
    AxisView y, x;
    int threads;
};

struct Kernels {
    const char* name;  // instruction set
    int lanes;         // floats in a vector
    void (*argmax_head)(const ArgmaxHeadParams&);
    void (*dense_head)(const DenseHeadParams&);
};

}  // namespace fastscnn
