// The same for C++17: a network that destroys itself, errors as exceptions, labels as a vector.
#pragma once

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fastscnn/fastscnn.h"

namespace fastscnn {
// Apart from the names inside the library, which a static one shows to the linker.
inline namespace cpp {

class Error : public std::runtime_error {
  public:
    Error(int32_t code, const char* text) : std::runtime_error(text), code(code) {}
    const int32_t code;  // one of fastscnn_code
};

// A frame of height x width pixels of three bytes; `stride` 0 stands for dense rows.
inline fastscnn_frame frame(const uint8_t* pixels, int height, int width, int64_t stride = 0,
                            fastscnn_channels channels = FASTSCNN_RGB) {
    return {sizeof(fastscnn_frame), pixels,  height, width, stride ? stride : 3 * int64_t(width),
            channels};
}

// `height` and `width` are what the network sees; 0: the working size.
inline fastscnn_options options(int threads = 1, int height = 0, int width = 0,
                                double opacity = 0.5) {
    return {sizeof(fastscnn_options), height, width, threads, opacity};
}

// All null; set what is wanted.
inline fastscnn_outputs outputs() {
    fastscnn_outputs o{};
    o.struct_size = sizeof o;
    return o;
}

// Every member but destruction may throw Error; see fastscnn.h for threads.
class Network {
  public:
    explicit Network(const std::string& path) {
        fastscnn_network* made = nullptr;
        call([&](auto... error) { return fastscnn_create_from_file(path.c_str(), &made, error...); });
        network_.reset(made);
    }
    Network(const void* data, size_t size) {
        fastscnn_network* made = nullptr;
        call([&](auto... error) { return fastscnn_create_from_memory(data, size, &made, error...); });
        network_.reset(made);
    }

    void segment(const fastscnn_frame& frame, const fastscnn_outputs& outputs,
                 const fastscnn_options& options = fastscnn::options()) {
        call([&](auto... error) {
            return fastscnn_segment(get(), &frame, &options, &outputs, error...);
        });
    }

    // Labels [height, width].
    std::vector<uint8_t> labels(const fastscnn_frame& frame,
                                const fastscnn_options& options = fastscnn::options()) {
        const bool sane = frame.height > 0 && frame.height <= 32768 && frame.width > 0 &&
                          frame.width <= 32768;  // else `segment` says what is wrong
        std::vector<uint8_t> found(sane ? size_t(frame.height) * size_t(frame.width) : 1);
        fastscnn_outputs wanted = outputs();
        wanted.labels = found.data();
        segment(frame, wanted, options);
        return found;
    }

    // (height, width) that the network sees of such a frame.
    std::pair<int, int> working_size(int height, int width) const {
        int32_t h = 0, w = 0;
        call([&](auto... error) {
            return fastscnn_working_size(get(), height, width, &h, &w, error...);
        });
        return {h, w};
    }

    int classes() const { return fastscnn_class_count(get()); }
    std::string class_name(int label) const {
        const char* name = fastscnn_class_name(get(), label);
        return name ? name : throw std::out_of_range("no class " + std::to_string(label));
    }
    // Three bytes RGB.
    const uint8_t* class_color(int label) const {
        const uint8_t* color = fastscnn_class_color(get(), label);
        return color ? color : throw std::out_of_range("no class " + std::to_string(label));
    }

    // "float32", "bfloat16" or "int8"
    std::string precision() const { return fastscnn_precision(get()); }

    fastscnn_network* get() const { return network_.get(); }

  private:
    struct Destroy {
        void operator()(fastscnn_network* network) const { fastscnn_destroy(network); }
    };

    template <class Function>
    static void call(Function function) {
        char text[512];
        const int32_t code = function(text, sizeof text);
        if (code == FASTSCNN_NO_MEMORY) throw std::bad_alloc();
        if (code != FASTSCNN_OK) throw Error(code, text);
    }

    std::unique_ptr<fastscnn_network, Destroy> network_;
};

}  // namespace cpp
}  // namespace fastscnn
