#include "model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace fastscnn {
namespace {

std::string bottleneck_name(int i) {
    return "global_feature_extractor.bottleneck" + std::to_string(i / 3 + 1) + "." +
           std::to_string(i % 3);
}

void require(bool ok, const std::string& what, const std::string& expected) {
    if (!ok) throw std::invalid_argument("config " + what + ": expected " + expected);
}

std::string is(const char* name, int value) { return name + ("=" + std::to_string(value)); }

}  // namespace

void NetworkConfig::check() const {
    require(classes >= 1 && classes <= 255, is("classes", classes), "1 to 255");
    require(stem_padding == 0 || stem_padding == 1 || stem_padding == kSamePadding,
            is("stem_padding", stem_padding), "0, 1 or same (-1)");
    std::array<int, 5> order = ppm_order;
    std::sort(order.begin(), order.end());
    require(order == std::array<int, 5>{0, 1, 2, 3, 6}, "ppm_order",
            "0, 1, 2, 3 and 6 in some order");
    require(ppm_join_kernel == 1 || ppm_join_kernel == 3, is("ppm_join_kernel", ppm_join_kernel),
            "1 or 3");
    require(ffm_dilation >= 1 && ffm_dilation <= 4096, is("ffm_dilation", ffm_dilation),
            "1 to 4096");
    for (int i = 0; i < 3; ++i) {
        require(std::isfinite(mean[i]), "mean", "three finite numbers");
        require(std::isfinite(std[i]) && std[i] > 0, "std", "three positive numbers");
    }
}

std::vector<ConvShape> conv_shapes(const NetworkConfig& config) {
    std::vector<ConvShape> shapes;
    const auto dense = [&](const std::string& name, int out, int inputs, int kernel = 1) {
        shapes.push_back({name, out, inputs, kernel, false});
    };
    const auto depthwise = [&](const std::string& name, int channels) {
        shapes.push_back({name, channels, 1, 3, true});
    };
    const auto dsconv = [&](const std::string& name, int inputs, int out) {
        depthwise(name + ".depthwise", inputs);
        dense(name + ".pointwise", out, inputs);
    };
    dense("learning_to_downsample.conv", 32, 3, 3);
    dsconv("learning_to_downsample.dsconv1", 32, 48);
    dsconv("learning_to_downsample.dsconv2", 48, 64);
    for (int i = 0; i < 9; ++i) {
        const auto [inputs, out, stride] = kBottlenecks[i];
        dense(bottleneck_name(i) + ".expand", kExpansion * inputs, inputs);
        depthwise(bottleneck_name(i) + ".depthwise", kExpansion * inputs);
        dense(bottleneck_name(i) + ".project", out, kExpansion * inputs);
    }
    const std::string pyramid = "global_feature_extractor.ppm.";
    for (int i = 0; i < kBranches; ++i) dense(pyramid + "branches." + std::to_string(i), 32, 128);
    dense(pyramid + "join", 128, 256, config.ppm_join_kernel);
    if (config.ffm_dense)
        dense("feature_fusion.depthwise", 128, 128);
    else
        depthwise("feature_fusion.depthwise", 128);
    dense("feature_fusion.low", 128, 128);
    dense("feature_fusion.high", 128, 64);
    dsconv("classifier.dsconv1", 128, 128);
    dsconv("classifier.dsconv2", 128, 128);
    dense("classifier.conv", config.classes, 128);
    return shapes;
}

std::vector<std::string> int8_inputs(const NetworkConfig& config) {
    std::vector<std::string> names;
    for (const ConvShape& shape : conv_shapes(config)) {
        const auto in = [&](const char* part) { return shape.name.find(part) == 0; };
        const bool dense_ffm = config.ffm_dense && shape.name == "feature_fusion.depthwise";
        const bool like_the_first = shape.name == "feature_fusion.high";  // bottleneck's input
        if (in("global_feature_extractor.bottleneck") || in("classifier.") ||
            (in("feature_fusion.") && !dense_ffm && !like_the_first))
            names.push_back(shape.name);
    }
    return names;
}

}  // namespace fastscnn
