// Owners of packed int8 weights, and the choice of the int8 kernels.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels_int8.h"
#include "packed.h"

namespace fastscnn {

// Kernel tables that this machine can run, best first; by name, or the best for "". Throws
// std::invalid_argument naming the choices.
std::vector<const KernelsInt8*> available_kernels_int8();
// Whether int8 is faster than float32 on this machine (docs/int8.md): with AVX-512.
bool int8_pays();
const KernelsInt8& find_kernels_int8(const std::string& name);

namespace int8 {

// Position of channel c in lane order.
inline int lane_order(int c) {
    const int block = c / kBlock * kBlock, lane = c % 16;
    return block + lane / 4 * 16 + c % kBlock / 16 * 4 + lane % 4;
}

// Per-channel values behind the weights: start, scale, bias.
struct Sums {
    Buffer data;
    int pitch;

    // Channel c goes to position order(c); what is missing is zero.
    template <class Order>
    Sums(const int32_t* start, const float* scale, const float* bias, int out, const Order& order)
        : pitch((out + kBlock - 1) / kBlock * kBlock) {
        data = allocate(3 * int64_t(pitch));
        std::fill_n(data.get(), 3 * pitch, 0.f);
        for (int c = 0; c < out; ++c) {
            std::memcpy(data.get() + order(c), start + c, sizeof *start);
            data.get()[pitch + order(c)] = scale[c];
            if (bias) data.get()[2 * pitch + order(c)] = bias[c];
        }
    }
    const int32_t* start() const { return reinterpret_cast<const int32_t*>(data.get()); }
    const float* scale() const { return data.get() + pitch; }
    const float* bias() const { return data.get() + 2 * pitch; }
};

}  // namespace int8

// A 1x1 convolution: to floats where there is a bias, else to bytes.
class PackedMatrixInt8 {
  public:
    // weight [out][inputs]; start, scale, bias [out]
    PackedMatrixInt8(const int8_t* weight, const int32_t* start, const float* scale,
                     const float* bias, int out, int inputs)
        : sums_(start, scale, bias, out, [&](int c) { return bias ? c : int8::lane_order(c); }),
          k_(inputs),
          out_(out) {
        const int groups = (inputs + 3) / 4, vecs = sums_.pitch / 16;
        data_.resize(int64_t(sums_.pitch) * groups * 4);
        // Panels of bytes are whole blocks; of floats, up to 64 channels, as equal as possible.
        const int used = bias ? (out + 15) / 16 : vecs, panels = (used + 3) / 4;
        int8_t* to = data_.data();
        for (int i = 0; i < panels; ++i)
            for (int g = 0; g < groups; ++g)
                for (int at = used * i / panels * 16; at < used * (i + 1) / panels * 16; ++at) {
                    const int c = bias ? at : channel_at(at);
                    for (int k = 4 * g; k < 4 * g + 4; ++k)
                        *to++ = c < out && k < inputs ? weight[int64_t(c) * inputs + k] : 0;
                }
    }

    MatrixInt8 view() const {
        return {data_.data(), sums_.start(), sums_.scale(), sums_.bias(), k_, out_};
    }

  private:
    // Inverse of lane_order.
    static int channel_at(int at) {
        const int in_block = at % kBlock;
        return at - in_block + in_block % 16 / 4 * 16 + in_block / 16 * 4 + in_block % 4;
    }

    int8::Sums sums_;
    std::vector<int8_t> data_;
    int k_, out_;
};

// A 3x3 depthwise convolution from bytes to bytes.
class PackedTapsInt8 {
  public:
    // weight [channels][row][column]; start, scale [channels]
    PackedTapsInt8(const int8_t* weight, const int32_t* start, const float* scale, int channels)
        : sums_(start, scale, nullptr, channels, int8::lane_order), channels_(channels) {
        data_.resize(12 * int64_t(sums_.pitch));
        for (int c = 0; c < channels; ++c) {
            const int block = c / kBlock, at = int8::lane_order(c) % kBlock;
            for (int row = 0; row < 3; ++row)
                for (int column = 0; column < 3; ++column)
                    data_[((int64_t(block) * 3 + column) * kBlock + at) * 4 + row] =
                        weight[9 * c + 3 * row + column];
        }
    }

    TapsInt8 view() const {
        return {data_.data(), sums_.start(), sums_.scale(), channels_, sums_.pitch};
    }

  private:
    int8::Sums sums_;
    std::vector<int8_t> data_;
    int channels_;
};

}  // namespace fastscnn
