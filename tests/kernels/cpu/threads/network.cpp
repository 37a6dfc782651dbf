// Networks of the portable kernels, in float32 and in int8: one shared by threads that take turns
// with sizes and numbers of threads of their own, another beside it; results equal those of one
// thread, to the bit.

#include "network.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "isa.h"
#include "packed_int8.h"

namespace fastscnn {

namespace portable {
extern const Kernels kernels;
extern const KernelsInt8 kernels_int8;
}  // namespace portable

// In place of isa.cpp and isa_int8.cpp, which know all instruction sets.
std::vector<const Kernels*> available_kernels() { return {&portable::kernels}; }
std::vector<const Kernels*> available_kernels_bf16() { return {}; }
const Kernels& find_kernels(const std::string&) { return portable::kernels; }
std::vector<const KernelsInt8*> available_kernels_int8() { return {&portable::kernels_int8}; }
const KernelsInt8& find_kernels_int8(const std::string&) { return portable::kernels_int8; }
bool int8_pays() { return false; }

}  // namespace fastscnn

namespace {

using namespace fastscnn;

constexpr Size kSizes[] = {{32, 48}, {40, 32}, {33, 35}};

// Numbers in -1..1.
std::vector<float> random(int64_t n) {
    static uint32_t state = 1;
    std::vector<float> p(static_cast<size_t>(n));
    for (float& x : p) {
        state = state * 1664525u + 1013904223u;
        x = float(int32_t(state) >> 8) / float(1 << 23);
    }
    return p;
}

std::unique_ptr<Network> network(bool int8) {
    Model model;
    std::vector<std::vector<float>> kept;
    for (const ConvShape& s : conv_shapes(model.config)) {
        kept.push_back(random(s.weights()));
        const float scale = 2 / std::sqrt(float(s.weights() / s.out));
        for (float& w : kept.back()) w *= scale;
        kept.push_back(random(s.out));
        model.convs.push_back({kept[kept.size() - 2].data(), kept.back().data()});
    }
    if (int8) model.ranges.assign(int8_inputs(model.config).size(), {0, 4});
    return std::make_unique<Network>(model);
}

std::vector<uint8_t> labels(Network& net, Size size, int threads) {
    std::vector<uint8_t> frame(size_t(size.h) * size.w * 3), found(size_t(size.h) * size.w);
    for (size_t i = 0; i < frame.size(); ++i) frame[i] = uint8_t(i * 7919 >> 3);
    Outputs outputs{};
    outputs.labels = found.data();
    net.run({frame.data(), nullptr, 1, size, 3 * int64_t(size.w), false}, size, size, outputs,
            threads);
    return found;
}

}  // namespace

int main() {
    int wrong = 0;
    for (const bool int8 : {false, true}) {
        const std::unique_ptr<Network> shared = network(int8), alone = network(int8);
        std::vector<std::vector<uint8_t>> expected, own;
        for (const Size size : kSizes) expected.push_back(labels(*shared, size, 1));
        for (const Size size : kSizes) own.push_back(labels(*alone, size, 1));
        std::atomic<int> different{0};
        std::vector<std::thread> callers;
        for (int caller = 0; caller < 3; ++caller)
            callers.emplace_back([&, caller] {
                for (int i = 0; i < 3; ++i) {
                    const int at = (caller + i) % 3;
                    different += labels(*shared, kSizes[at], 1 + caller) != expected[at];
                }
            });
        for (int at = 0; at < 3; ++at) different += labels(*alone, kSizes[at], 3) != own[at];
        for (std::thread& caller : callers) caller.join();
        wrong += different;
    }
    std::printf("%d results differ\n", wrong);
    return wrong != 0;
}
