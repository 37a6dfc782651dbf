#include "bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace fastscnn {

namespace {

using Address = uintptr_t;
using Range = std::pair<float, float>;

template <class T = uint16_t>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Type type(const std::string& name) { return name == "bfloat16" ? Type::kBF16 : Type::kF16; }

Stream stream(Address handle) { return reinterpret_cast<Stream>(handle); }

void check(const std::string& error) {
    if (!error.empty()) throw std::runtime_error(error);
}

void cuda_argmax_head(const std::string& dtype, Address scores, Address labels, Address confidence,
                      int n, int classes, int h, int w, int oh, int ow, bool align_corners,
                      Address handle) {
    check(argmax_head(type(dtype),
                      {pointer(scores), pointer<uint8_t>(labels), pointer<float>(confidence), n,
                       classes, h, w, oh, ow, align_corners},
                      stream(handle)));
}

void cuda_dsconv(const std::string& dtype, Address x, Address depthwise, Address depthwise_bias,
                 Address pointwise, Address pointwise_bias, Address head, Address head_bias,
                 Address y, std::array<int, 3> size, std::array<int, 5> channels,
                 std::array<int, 2> out, int stride, int dilation, Range mid, Range last,
                 Address handle) {
    check(dsconv(type(dtype),
                 {pointer(x), pointer(depthwise), pointer<float>(depthwise_bias),
                  pointer(pointwise), pointer<float>(pointwise_bias), pointer(head),
                  pointer<float>(head_bias), pointer(y), size[0], size[1], size[2], channels[0],
                  channels[1], channels[2], channels[3], channels[4], out[0], out[1], stride,
                  dilation, mid.first, mid.second, last.first, last.second},
                 fastscnn::stream(handle)));
}

}  // namespace

void bind_cuda(pybind11::module_& m) {
    m.def("cuda_argmax_head", &cuda_argmax_head);
    m.def("cuda_dsconv", &cuda_dsconv);
}

}  // namespace fastscnn
