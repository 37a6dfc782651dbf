// The CPU network for Python: addresses and sizes that were checked there, in; nothing out. Every
// run releases the interpreter lock.

#include "bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string_view>

#include "model_file.h"
#include "network.h"

namespace py = pybind11;

namespace fastscnn {
namespace {

using Pair = std::pair<int, int>;

Size size(const Pair& s) { return {s.first, s.second}; }

// FastSCNNConfig.to_dict()
NetworkConfig read_config(const py::dict& d, int classes) {
    NetworkConfig c;
    c.classes = classes;
    const py::object padding = d["stem_padding"];
    c.stem_padding = py::isinstance<py::str>(padding) ? kSamePadding : padding.cast<int>();
    c.dsconv_relu = d["dsconv_relu"].cast<bool>();
    c.bottleneck_relu6 = d["bottleneck_activation"].cast<std::string>() == "relu6";
    c.ppm_order = d["ppm_order"].cast<std::array<int, 5>>();
    c.ppm_join_kernel = d["ppm_join_kernel"].cast<int>();
    c.ppm_align_corners = d["ppm_align_corners"].cast<bool>();
    c.ffm_align_corners = d["ffm_align_corners"].cast<bool>();
    c.head_align_corners = d["head_align_corners"].cast<bool>();
    c.ffm_dense = d["ffm_kernel"].cast<std::string>() == "dense";
    c.ffm_dilation = d["ffm_dilation"].cast<int>();
    c.mean = d["mean"].cast<std::array<double, 3>>();
    c.std = d["std"].cast<std::array<double, 3>>();
    return c;
}

// `convs`: addresses of weight and bias and the weight's shape, by name; `ranges` likewise.
std::unique_ptr<Network> make_network(
    const py::dict& config, int classes,
    const std::map<std::string, std::tuple<Address, Address, std::vector<int>>>& convs,
    const std::map<std::string, Range>& ranges, const std::string& isa, int max_sizes) {
    Model model;
    model.config = read_config(config, classes);
    model.config.check();
    for (const ConvShape& s : conv_shapes(model.config)) {
        const auto found = convs.find(s.name);
        const std::vector<int> expected = {s.out, s.inputs, s.kernel, s.kernel};
        if (found == convs.end() || std::get<2>(found->second) != expected)
            throw std::invalid_argument(s.name + ".weight: expected shape (" +
                                        std::to_string(s.out) + ", " + std::to_string(s.inputs) +
                                        ", " + std::to_string(s.kernel) + ", " +
                                        std::to_string(s.kernel) + ")");
        const auto& [weight, bias, shape] = found->second;
        model.convs.push_back({pointer<float>(weight), pointer<float>(bias)});
    }
    if (!ranges.empty())
        for (const std::string& name : int8_inputs(model.config))
            model.ranges.push_back(ranges.at(name));
    return std::make_unique<Network>(model, isa, max_sizes);
}

// (address, whether uint8, batch, height, width, stride in bytes, whether BGR)
using FramesTuple = std::tuple<Address, bool, int, int, int, int64_t, bool>;

Frames frames(const FramesTuple& t) {
    const auto [address, is_bytes, batch, h, w, stride, bgr] = t;
    return {is_bytes ? pointer<const uint8_t>(address) : nullptr,
            is_bytes ? nullptr : pointer<const float>(address),
            batch,
            {h, w},
            stride,
            bgr};
}

// Addresses by name; `colors` belongs to the pictures.
Outputs outputs(const std::map<std::string, Address>& to, double opacity) {
    const auto at = [&](const char* name) {
        const auto found = to.find(name);
        return found == to.end() ? 0 : found->second;
    };
    return {pointer<uint8_t>(at("labels")),
            pointer<float>(at("confidence")),
            pointer<float>(at("probabilities")),
            pointer<float>(at("logits")),
            pointer<float>(at("scores")),
            pointer<uint8_t>(at("color")),
            pointer<uint8_t>(at("overlay")),
            pointer<const uint8_t>(at("colors")),
            opacity};
}

}  // namespace

void bind_network(py::module_& m) {
    m.def("int8_inputs",
          [](const py::dict& config) { return int8_inputs(read_config(config, 1)); });
    m.def("conv_names", [](const py::dict& config) {
        std::vector<std::string> names;
        for (const ConvShape& s : conv_shapes(read_config(config, 1))) names.push_back(s.name);
        return names;
    });
    py::class_<Network>(m, "Network", "A folded network on the CPU.")
        .def(py::init(&make_network))
        .def_static("from_file",
                    [](const std::string_view& bytes) {
                        const ModelFile file(bytes.data(), bytes.size());
                        return std::make_unique<Network>(file.model);
                    })
        .def("run",
             [](Network& n, const FramesTuple& f, Pair in, Pair out,
                const std::map<std::string, Address>& to, double opacity, int threads) {
                 const py::gil_scoped_release unlocked;
                 n.run(frames(f), size(in), size(out), outputs(to, opacity), threads);
             })
        .def("steps",
             [](Network& n, const FramesTuple& f, Pair in, Pair out) {
                 return n.steps(frames(f), size(in), size(out));
             })
        .def("run_step",
             [](Network& n, int step, const FramesTuple& f, Pair in, Pair out,
                const std::map<std::string, Address>& to, int threads) {
                 const py::gil_scoped_release unlocked;
                 n.run_step(step, frames(f), size(in), size(out), outputs(to, 0), threads);
             })
        .def("scores_size",
             [](const Network& n, Pair in) {
                 const Size s = n.scores_size(size(in));
                 return Pair(s.h, s.w);
             })
        .def_property_readonly("bytes", &Network::bytes)
        .def_property_readonly("precision", &Network::precision);
}

}  // namespace fastscnn
