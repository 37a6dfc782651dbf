// The C ABI (csrc/include/fastscnn/fastscnn.h) over the network object.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "fastscnn/fastscnn.h"
#include "model_file.h"
#include "network.h"
#include "packed_int8.h"

using fastscnn::Frames;
using fastscnn::ModelFile;
using fastscnn::Network;
using fastscnn::Outputs;
using fastscnn::Size;

struct fastscnn_network {
    std::vector<std::string> names;
    std::vector<uint8_t> colors;
    int working_side;
    Network network;

    explicit fastscnn_network(const ModelFile& file)
        : names(file.names),
          colors(file.colors),
          working_side(file.working_side),
          network(chosen(file.model)) {}

    // As Python's runtime does: int8 where it is faster than float32.
    static fastscnn::Model chosen(fastscnn::Model model) {
        if (!fastscnn::int8_pays()) model.ranges.clear();
        return model;
    }

    Size working_size(Size frame) const {
        const int shorter = std::min(frame.h, frame.w);
        if (!working_side || shorter < 1) return frame;
        const auto scaled = [&](int side) {  // halves to even, as Python's round
            const double value = std::nearbyint(double(side) * working_side / shorter);
            return int(std::min(value, 1e9));
        };
        return {scaled(frame.h), scaled(frame.w)};
    }
};

namespace {

struct BadFile : std::runtime_error {
    using runtime_error::runtime_error;
};

void say(const char* text, char* error, size_t size) {
    if (!error || !size) return;
    const size_t n = std::min(std::strlen(text), size - 1);
    std::memcpy(error, text, n);
    error[n] = 0;
}

// Runs `body` and turns what it throws into a code and a sentence.
template <class Body>
int32_t guarded(char* error, size_t size, Body body) noexcept {
    say("", error, size);
    try {
        body();
        return FASTSCNN_OK;
    } catch (const std::invalid_argument& e) {
        say(e.what(), error, size);
        return FASTSCNN_BAD_ARGUMENT;
    } catch (const BadFile& e) {
        say(e.what(), error, size);
        return FASTSCNN_BAD_FILE;
    } catch (const std::bad_alloc&) {
        say("out of memory: give a smaller frame or size", error, size);
        return FASTSCNN_NO_MEMORY;
    } catch (const std::exception& e) {
        say(e.what(), error, size);
        return FASTSCNN_FAILED;
    } catch (...) {
        say("unknown error", error, size);
        return FASTSCNN_FAILED;
    }
}

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

template <class Struct>
void check_size(const Struct* s, const char* what) {
    if (s->struct_size < sizeof(Struct))
        throw std::invalid_argument(std::string(what) + ".struct_size " +
                                    std::to_string(s->struct_size) + ": expected " +
                                    std::to_string(sizeof(Struct)) + ", its sizeof");
}

fastscnn_network* create(const std::string& name, const void* data, size_t bytes) {
    try {
        return new fastscnn_network(ModelFile(data, bytes));
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& e) {
        throw BadFile(name + ": " + e.what());
    }
}

}  // namespace

int32_t fastscnn_abi_version(void) { return FASTSCNN_ABI_VERSION; }

int32_t fastscnn_create_from_file(const char* path, fastscnn_network** network, char* error,
                                  size_t error_size) {
    return guarded(error, error_size, [&] {
        require(network, "network is null: expected where to put it");
        *network = nullptr;
        require(path, "path is null: expected that of a .fscnn file");
        std::vector<char> bytes;
        try {
            bytes = fastscnn::read_file(path);
        } catch (const std::runtime_error& e) {
            throw BadFile(e.what());
        }
        *network = create(path, bytes.data(), bytes.size());
    });
}

int32_t fastscnn_create_from_memory(const void* data, size_t size, fastscnn_network** network,
                                    char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        require(network, "network is null: expected where to put it");
        *network = nullptr;
        require(data, "data is null: expected the bytes of a .fscnn file");
        *network = create("data", data, size);
    });
}

void fastscnn_destroy(fastscnn_network* network) { delete network; }

int32_t fastscnn_segment(fastscnn_network* network, const fastscnn_frame* frame,
                         const fastscnn_options* options, const fastscnn_outputs* outputs,
                         char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const fastscnn_options defaults{sizeof(fastscnn_options), 0, 0, 1, 0.5};
        const fastscnn_options* how = options ? options : &defaults;
        require(network, "network is null: create one first");
        require(frame, "frame is null: expected a fastscnn_frame");
        require(outputs, "outputs is null: expected a fastscnn_outputs");
        check_size(frame, "frame");
        check_size(how, "options");
        check_size(outputs, "outputs");
        require(frame->pixels, "frame.pixels is null: expected the frame's first pixel");
        require(frame->channels == FASTSCNN_RGB || frame->channels == FASTSCNN_BGR,
                "frame.channels: expected FASTSCNN_RGB or FASTSCNN_BGR");
        const Size out{frame->height, frame->width};
        const Size in = how->height || how->width ? Size{how->height, how->width}
                                                  : network->working_size(out);
        const Frames frames{frame->pixels, nullptr,       1,
                            out,           frame->stride, frame->channels == FASTSCNN_BGR};
        const Outputs to{outputs->labels,
                         outputs->confidence,
                         outputs->probabilities,
                         outputs->logits,
                         nullptr,
                         outputs->color,
                         outputs->overlay,
                         network->colors.data(),
                         how->opacity};
        network->network.run(frames, in, out, to, how->threads);
    });
}

int32_t fastscnn_working_size(const fastscnn_network* network, int32_t frame_height,
                              int32_t frame_width, int32_t* height, int32_t* width, char* error,
                              size_t error_size) {
    return guarded(error, error_size, [&] {
        require(network, "network is null: create one first");
        require(height && width, "height or width is null: expected where to put them");
        const Size frame{frame_height, frame_width};
        fastscnn::check_size("frame", frame, 1);
        const Size in = network->working_size(frame);
        fastscnn::check_size("size", in, fastscnn::kMinSide);
        *height = in.h, *width = in.w;
    });
}

int32_t fastscnn_class_count(const fastscnn_network* network) {
    return network ? int32_t(network->names.size()) : 0;
}

const char* fastscnn_class_name(const fastscnn_network* network, int32_t label) {
    return label >= 0 && label < fastscnn_class_count(network) ? network->names[label].c_str()
                                                               : nullptr;
}

const uint8_t* fastscnn_class_color(const fastscnn_network* network, int32_t label) {
    return label >= 0 && label < fastscnn_class_count(network) ? &network->colors[3 * size_t(label)]
                                                               : nullptr;
}

const char* fastscnn_precision(const fastscnn_network* network) {
    return network ? network->network.precision() : nullptr;
}

int64_t fastscnn_workspace_bytes(fastscnn_network* network) {
    return network ? network->network.bytes() : 0;
}
