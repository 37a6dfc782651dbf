// fuzz FILE.fscnn COUNT: mutated and truncated copies of a file, through the C ABI. Every copy gives
// an error, or, where its checksum was mended, possibly a network, which then runs. For a library
// built with AddressSanitizer.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "fastscnn/fastscnn.h"

static uint32_t crc32(const unsigned char* data, size_t bytes) {
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256 && !table[255]; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ table[(crc ^ data[i]) & 255];
    return ~crc;
}

static void mend(std::vector<unsigned char>& file) {
    const uint64_t size = file.size();
    std::memcpy(file.data() + 16, &size, 8);
    const uint32_t crc = crc32(file.data() + 24, file.size() - 24);
    std::memcpy(file.data() + 12, &crc, 4);
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::ifstream in(argv[1], std::ios::binary);
    const std::vector<unsigned char> whole{std::istreambuf_iterator<char>(in), {}};
    const std::vector<uint8_t> pixels(3 * 32 * 33, 99);
    std::vector<uint8_t> labels(32 * 33), overlay(3 * 32 * 33);
    std::mt19937 random(1);
    const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
    int refused = 0, accepted = 0;
    const int count = std::atoi(argv[2]);
    for (int i = 0; i < count; ++i) {
        std::vector<unsigned char> file = whole;
        // Half of the changes hit the first 1,000 bytes: header, structure, ranges, names.
        const auto place = [&] { return below(below(2) ? file.size() : 1000); };
        const bool mended = i % 2;
        switch (below(mended ? 4 : 5)) {
            case 0: file[place()] ^= static_cast<unsigned char>(1 << below(8)); break;
            case 1: file[place()] = static_cast<unsigned char>(below(2) ? 255 : 128); break;
            case 2: {  // a number of four bytes
                static const uint32_t numbers[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff,
                                                   0x7f800000, 0x7fc00000, 0x7f7fffff, 0x10000};
                const uint32_t number = numbers[below(9)];
                const size_t at = 24 + 4 * below(300);
                std::memcpy(file.data() + at, &number, 4);
                break;
            }
            case 3: {  // bytes that are missing, or too many
                const size_t at = 24 + below(below(2) ? 1000 : file.size() - 24);
                if (below(2)) file.erase(file.begin() + long(at), file.begin() + long(at + below(file.size() - at)));
                else file.insert(file.begin() + long(at), 1 + below(64), 7);
                break;
            }
            default: file.resize(below(below(2) ? 1000 : file.size())); break;
        }
        if (mended) mend(file);
        if (file == whole) continue;
        fastscnn_network* network = nullptr;
        char error[256] = "?";
        const int code =
            fastscnn_create_from_memory(file.data(), file.size(), &network, error, sizeof error);
        if (code == FASTSCNN_OK) {
            if (!mended) return std::fprintf(stderr, "copy %d was taken\n", i), 1;
            const fastscnn_frame frame{sizeof frame, pixels.data(), 32, 33, 99, FASTSCNN_RGB};
            const fastscnn_options options{sizeof options, 32, 48, 1, 0.5};
            fastscnn_outputs outputs{};
            outputs.struct_size = sizeof outputs;
            outputs.labels = labels.data(), outputs.overlay = overlay.data();
            const int ran = fastscnn_segment(network, &frame, &options, &outputs, error, sizeof error);
            if (ran != FASTSCNN_OK) return std::fprintf(stderr, "copy %d: %s\n", i, error), 1;
            ++accepted;
        } else {
            if (network || !error[0]) return std::fprintf(stderr, "copy %d: no error\n", i), 1;
            ++refused;
        }
        fastscnn_destroy(network);
    }
    std::printf("%d refused, %d with a mended checksum ran\n", refused, accepted);
    return 0;
}
