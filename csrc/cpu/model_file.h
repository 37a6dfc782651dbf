// The `.fscnn` file: what fastscnn/export/fscnn.py writes. All numbers are little-endian.
//
//   char[8]     "FASTSCNN"
//   uint32      version, 2
//   uint32      CRC-32 (that of zlib) of everything behind `size`
//   uint64      size of the whole file in bytes
//   int32[17]   classes, stem_padding (-1: same), dsconv_relu, bottleneck_relu6, ppm_order[5],
//               ppm_join_kernel, ppm_align_corners, ffm_align_corners, head_align_corners,
//               ffm_dense, ffm_dilation, working side (0: the frame's own size), bfloat16
//   float64[6]  mean and std of RGB in 0..1
//   int32       number of int8 ranges: that of int8_inputs(), or 0
//   int32       bytes of the names' text
//   float64[2]  lowest and highest value, of each of the ranges
//   uint8[3]    RGB colour, of each class
//   char        the classes' names in UTF-8, a NUL behind each
//   float32     weight and bias of each of conv_shapes()
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace fastscnn {

// A file's content. `model.convs` points into `floats`.
struct ModelFile {
    Model model;
    std::vector<std::string> names;  // of the classes; empty strings where none is known
    std::vector<uint8_t> colors;     // RGB [classes, 3]
    int working_side = 0;            // of the shorter side of a frame, or 0: its own size
    std::vector<float> floats;

    // Throws std::runtime_error saying what is wrong with the bytes, which may be anything.
    ModelFile(const void* data, size_t bytes);
    ModelFile(const ModelFile&) = delete;
};

// All bytes of a file. Throws std::runtime_error naming it.
std::vector<char> read_file(const std::string& path);

}  // namespace fastscnn
