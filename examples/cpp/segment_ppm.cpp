// segment_ppm NETWORK.fscnn IN.ppm OUT.pgm [THREADS]: labels of a photo, a byte per pixel.

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "fastscnn/fastscnn.hpp"

struct Image {
    int height = 0, width = 0;
    std::vector<uint8_t> pixels;  // RGB
};

// Binary PPM ("P6") of 8 bits, comments allowed.
static Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    const auto word = [&] {
        std::string text;
        while (file >> text && text[0] == '#') file.ignore(1 << 20, '\n');
        return text;
    };
    Image image;
    const bool ppm = word() == "P6";
    image.width = std::atoi(word().c_str()), image.height = std::atoi(word().c_str());
    if (!ppm || word() != "255" || image.width < 1 || image.height < 1 || image.width > 32768 ||
        image.height > 32768)
        throw std::runtime_error(path + ": expected a binary PPM (P6) of 8 bits");
    file.get();
    image.pixels.resize(size_t(3) * image.width * image.height);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), long(image.pixels.size())))
        throw std::runtime_error(path + ": truncated");
    return image;
}

int main(int argc, char** argv) try {
    if (argc != 4 && argc != 5) {
        std::cerr << "usage: segment_ppm NETWORK.fscnn IN.ppm OUT.pgm [THREADS]\n";
        return 2;
    }
    fastscnn::Network network(argv[1]);
    const Image image = read_ppm(argv[2]);
    const std::vector<uint8_t> labels =
        network.labels(fastscnn::frame(image.pixels.data(), image.height, image.width),
                       fastscnn::options(argc == 5 ? std::atoi(argv[4]) : 1));

    std::ofstream out(argv[3], std::ios::binary);
    out << "P5\n" << image.width << " " << image.height << "\n255\n";
    out.write(reinterpret_cast<const char*>(labels.data()), long(labels.size()));
    if (!out.flush()) throw std::runtime_error(std::string(argv[3]) + ": cannot be written");

    std::vector<long> pixels(size_t(network.classes()));
    for (uint8_t label : labels) ++pixels[label];
    for (int i = 0; i < network.classes(); ++i)
        if (pixels[i]) std::cout << network.class_name(i) << " " << pixels[i] << "\n";
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
