// Owners of what the kernels only point at: packed weights, tables and scratch memory.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "axis.h"
#include "isa.h"

namespace fastscnn {

inline AxisView view(const Axis& a) {
    return {a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.first.data()};
}

inline ByteAxisView view(const ByteAxis& a) {
    return {a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.bits};
}

struct Free {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

inline Buffer allocate(int64_t floats) {
    const size_t bytes = (size_t(floats) * sizeof(float) + 63) / 64 * 64;
    Buffer buffer(static_cast<float*>(std::aligned_alloc(64, bytes ? bytes : 64)));
    if (!buffer) throw std::bad_alloc();
    return buffer;
}

// A dense convolution packed for one instruction set.
class PackedMatrix {
  public:
    // weight [out][inputs][taps], bias [out]
    PackedMatrix(const float* weight, const float* bias, int out, int inputs, int taps,
                 const std::string& isa)
        : kernels(&find_kernels(isa)), k_(inputs * taps), out_(out) {
        floats_ = kernels->pack_matrix(weight, bias, out, inputs, taps, nullptr);
        data_ = allocate(floats_);
        kernels->pack_matrix(weight, bias, out, inputs, taps, data_.get());
    }

    Matrix view() const {
        const int pitch = (out_ + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
        return {data_.get(), data_.get() + floats_ - pitch, k_, out_};
    }

    const Kernels* kernels;

  private:
    Buffer data_;
    int64_t floats_;
    int k_, out_;
};

// A 3x3 depthwise convolution packed for one instruction set: taps and channels transposed.
class PackedTaps {
  public:
    // weight [channels][9], bias [channels]
    PackedTaps(const float* weight, const float* bias, int channels, const std::string& isa)
        : kernels(&find_kernels(isa)), channels_(channels) {
        pitch_ = (channels + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
        data_ = allocate(10 * int64_t(pitch_));
        for (int i = 0; i < 10; ++i)
            for (int c = 0; c < pitch_; ++c)
                data_.get()[int64_t(i) * pitch_ + c] = c >= channels ? 0.f
                                                       : i < 9       ? weight[9 * c + i]
                                                                     : bias[c];
    }

    Taps view() const {
        return {data_.get(), data_.get() + 9 * int64_t(pitch_), channels_, pitch_};
    }

    const Kernels* kernels;

  private:
    Buffer data_;
    int channels_, pitch_;
};

// Scratch memory, which grows to the largest need and is kept, and threads; for one call at a time.
class Workspace {
  public:
    float* reserve(int64_t floats) {
        if (floats > floats_) {
            data_.reset();
            floats_ = 0;
            data_ = allocate(floats);
            floats_ = floats;
        }
        return data_.get();
    }
    Pool& pool() { return pool_; }
    int64_t bytes() const { return floats_ * int64_t(sizeof(float)); }

  private:
    Buffer data_;
    int64_t floats_ = 0;
    Pool pool_;
};

}  // namespace fastscnn
