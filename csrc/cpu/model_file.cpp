#include "model_file.h"

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the reader of .fscnn files takes numbers as they are: little-endian"
#endif

namespace fastscnn {
namespace {

constexpr uint32_t kVersion = 2;
constexpr size_t kHeader = 24;
constexpr int64_t kMaxBytes = int64_t(1) << 30;
const char* const kTruncated = "truncated: export it again";

void require(bool ok, const std::string& what) {
    if (!ok) throw std::runtime_error(what);
}

// Takes values from bytes and never more than there are.
class Reader {
  public:
    Reader(const void* data, size_t bytes) : at_(static_cast<const char*>(data)), left_(bytes) {}

    template <class T>
    void take(T* to, size_t count) {
        require(count <= left_ / sizeof(T), kTruncated);
        if (count) std::memcpy(to, at_, count * sizeof(T));
        at_ += count * sizeof(T), left_ -= count * sizeof(T);
    }
    template <class T>
    T take() {
        T value;
        take(&value, 1);
        return value;
    }
    size_t left() const { return left_; }

  private:
    const char* at_;
    size_t left_;
};

uint32_t crc32(const char* data, size_t bytes) {
    std::array<uint32_t, 256> table;
    for (uint32_t i = 0; i < 256; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ table[(crc ^ uint8_t(data[i])) & 255];
    return ~crc;
}

bool flag(Reader& in, const char* name) {
    const int value = in.take<int32_t>();
    require(value == 0 || value == 1,
            std::string("config ") + name + "=" + std::to_string(value) + ": expected 0 or 1");
    return value == 1;
}

NetworkConfig read_config(Reader& in) {
    NetworkConfig c;
    c.classes = in.take<int32_t>();
    c.stem_padding = in.take<int32_t>();
    c.dsconv_relu = flag(in, "dsconv_relu");
    c.bottleneck_relu6 = flag(in, "bottleneck_relu6");
    for (int& bin : c.ppm_order) bin = in.take<int32_t>();
    c.ppm_join_kernel = in.take<int32_t>();
    c.ppm_align_corners = flag(in, "ppm_align_corners");
    c.ffm_align_corners = flag(in, "ffm_align_corners");
    c.head_align_corners = flag(in, "head_align_corners");
    c.ffm_dense = flag(in, "ffm_dense");
    c.ffm_dilation = in.take<int32_t>();
    return c;
}

// Of `count` names, each with a NUL behind it.
std::vector<std::string> read_names(Reader& in, int bytes, int count) {
    std::vector<char> text(size_t(bytes), 0);
    in.take(text.data(), text.size());
    std::vector<std::string> names;
    size_t begin = 0;
    for (size_t i = 0; i < text.size() && int(names.size()) < count; ++i)
        if (!text[i]) names.emplace_back(text.data() + begin, i - begin), begin = i + 1;
    require(int(names.size()) == count && begin == text.size(),
            "class names: expected one for each of " + std::to_string(count) + " classes");
    return names;
}

void check_header(const void* data, size_t bytes) {
    Reader in(data, bytes);
    char magic[8];
    require(bytes >= kHeader, kTruncated);
    in.take(magic, 8);
    require(!std::memcmp(magic, "FASTSCNN", 8), "not a .fscnn file: write one with fastscnn export");
    const uint32_t version = in.take<uint32_t>();
    require(version == kVersion, "format version " + std::to_string(version) + ": this library reads " +
                                     std::to_string(kVersion) + "; update it or export again");
    const uint32_t checksum = in.take<uint32_t>();
    const uint64_t size = in.take<uint64_t>();
    require(size == bytes, std::to_string(bytes) + " bytes instead of " + std::to_string(size) +
                               ": truncated or extended; copy or export it again");
    require(crc32(static_cast<const char*>(data) + kHeader, bytes - kHeader) == checksum,
            "wrong checksum: the file is damaged; copy or export it again");
}

}  // namespace

ModelFile::ModelFile(const void* data, size_t bytes) {
    check_header(data, bytes);
    Reader in(static_cast<const char*>(data) + kHeader, bytes - kHeader);
    NetworkConfig& config = model.config;
    config = read_config(in);
    working_side = in.take<int32_t>();
    model.bfloat16 = flag(in, "bfloat16");
    in.take(config.mean.data(), 3);
    in.take(config.std.data(), 3);
    try {
        config.check();
    } catch (const std::invalid_argument& error) {
        throw std::runtime_error(error.what());
    }
    require(working_side == 0 || (working_side >= 32 && working_side <= 32768),
            "working side " + std::to_string(working_side) + ": expected 0 or 32 to 32768");
    const int ranges = in.take<int32_t>(), text = in.take<int32_t>();
    require(ranges == 0 || ranges == int(int8_inputs(config).size()),
            std::to_string(ranges) + " int8 ranges: expected " +
                std::to_string(int8_inputs(config).size()) + ", or none");
    require(text >= 0, "class names: negative length");
    model.ranges.resize(size_t(ranges));
    for (Range& range : model.ranges) in.take(range.data(), 2);
    colors.resize(3 * size_t(config.classes));
    in.take(colors.data(), colors.size());
    require(size_t(text) <= in.left(), kTruncated);
    names = read_names(in, text, config.classes);

    const std::vector<ConvShape> shapes = conv_shapes(config);
    int64_t count = 0;
    for (const ConvShape& s : shapes) count += s.weights() + s.out;
    require(in.left() == size_t(count) * sizeof(float), "weights: expected " +
                                                            std::to_string(count) + " numbers");
    floats.resize(size_t(count));
    in.take(floats.data(), floats.size());
    for (float value : floats) require(std::isfinite(value), "weights: expected finite numbers");
    const float* at = floats.data();
    for (const ConvShape& s : shapes) {
        model.convs.push_back({at, at + s.weights()});
        at += s.weights() + s.out;
    }
}

std::vector<char> read_file(const std::string& path) {
    const auto close = [](std::FILE* f) { std::fclose(f); };
    const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"), close);
    require(file != nullptr, path + ": " + std::strerror(errno));
    std::vector<char> bytes;
    char block[1 << 16];
    while (const size_t n = std::fread(block, 1, sizeof block, file.get())) {
        bytes.insert(bytes.end(), block, block + n);
        require(int64_t(bytes.size()) <= kMaxBytes, path + ": too large for a .fscnn file");
    }
    require(!std::ferror(file.get()), path + ": " + std::strerror(errno));
    return bytes;
}

}  // namespace fastscnn
