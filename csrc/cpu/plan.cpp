#include "plan.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

namespace fastscnn {
namespace {

int strided(int n, int stride) { return (n - 1) / stride + 1; }

int64_t pixels(Size s) { return int64_t(s.h) * s.w; }

}  // namespace

Pages::Pages(int64_t bytes) : bytes_(bytes) {
    void* p = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        bytes_ = 0;
        throw std::bad_alloc();
    }
    data_ = static_cast<char*>(p);
}

Pages::~Pages() {
    if (data_) munmap(data_, size_t(bytes_));
}

Plan::Plan(const Weights& weights, const Sizes& sizes) : sizes(sizes), weights_(weights) {
    add_trunk();
}

int Plan::piece(int64_t bytes) {
    pieces_.push_back({bytes, -1, -1, 0});
    return int(pieces_.size()) - 1;
}

int Plan::map(int channels, Size size, bool bytes) {
    return piece(sizes.batch * pixels(size) * channels * int64_t(bytes ? 1 : sizeof(float)));
}

void Plan::step(std::string name, std::vector<int> uses,
                std::function<int64_t(const Job&, Call)> run) {
    const int index = int(steps_.size()), scratch = piece(0);
    uses.push_back(scratch);
    for (int i : uses) {
        if (pieces_[i].first < 0) pieces_[i].first = index;
        pieces_[i].last = index;
    }
    steps_.push_back({std::move(name), std::move(run), scratch});
}

void* Plan::at(int piece) const {
    return arena_.data() ? arena_.data() + pieces_[piece].offset : nullptr;
}

Map Plan::at(int piece, Size size) const { return {at(piece), sizes.batch, size.h, size.w}; }

void Plan::prepare(int threads, Pool& pool) {
    if (threads == threads_) return;
    const Frames frames{};
    const Outputs outputs{};
    for (const Step& step : steps_)
        pieces_[step.scratch].bytes =
            step.run({frames, outputs}, {&pool, threads, nullptr}) * int64_t(sizeof(float));
    threads_ = 0;  // until there is memory
    lay_out();
    threads_ = threads;
}

void Plan::run(size_t step, const Job& job, Pool& pool) const {
    steps_[step].run(job, {&pool, threads_, floats(steps_[step].scratch)});
}

// Largest first, each at the lowest place that no piece alive at the same time holds.
void Plan::lay_out() {
    std::vector<int> order(pieces_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return pieces_[a].bytes > pieces_[b].bytes; });
    int64_t total = 1;
    std::vector<int> placed;
    for (int i : order) {
        Piece& p = pieces_[i];
        std::vector<std::pair<int64_t, int64_t>> taken;  // begin, end
        for (int j : placed) {
            const Piece& other = pieces_[j];
            if (p.first <= other.last && other.first <= p.last)
                taken.push_back({other.offset, other.offset + other.bytes});
        }
        std::sort(taken.begin(), taken.end());
        p.offset = 0;
        for (const auto& [begin, end] : taken) {
            if (p.offset + p.bytes <= begin) break;
            p.offset = std::max(p.offset, (end + 63) / 64 * 64);
        }
        placed.push_back(i);
        total = std::max(total, p.offset + p.bytes);
    }
    if (total > arena_.bytes()) {
        arena_ = Pages();  // first, so that there are never two
        arena_ = Pages(total);
    }
}

// From the frame to the class scores, then to what is asked for.
void Plan::add_trunk() {
    const Weights& w = weights_;
    const Size in = sizes.in;
    const int input = piece(3 * sizes.batch * pixels(in));
    const auto direct = [](const Frames& f, Size in) {
        return f.size == in && !f.bgr && f.stride == 3 * int64_t(f.size.w);
    };
    const ByteAxis rows(sizes.frame.h, in.h), cols(sizes.frame.w, in.w);
    step("resize_frame", {input}, [=, &w](const Job& job, Call call) -> int64_t {
        const Frames& f = job.frames;
        if (call.scratch && (!f.pixels || direct(f, in))) return 0;
        return w.kernels.resize_frame({f.pixels, f.stride, f.bgr, sizes.batch, view(rows),
                                       view(cols), static_cast<uint8_t*>(at(input)), call.pool,
                                       call.threads, call.scratch});
    });
    const StemAxis stem_rows(in.h, w.config.stem_padding), stem_cols(in.w, w.config.stem_padding);
    Size size{strided(strided(stem_rows.out, 2), 2), strided(strided(stem_cols.out, 2), 2)};
    const Size large = size;
    const int high = map(64, large, w.trunk->bytes());
    step("learning_to_downsample", {input, high}, [=, &w](const Job& job, Call call) {
        const Frames& f = job.frames;
        const uint8_t* own = static_cast<const uint8_t*>(at(input));
        const uint8_t* frame = !f.pixels ? nullptr : direct(f, in) ? f.pixels : own;
        return w.learning_to_downsample(frame, f.x, sizes.batch, in.h, in.w, at(high), call);
    });
    int x = high;
    for (int i = 0; i < 9; ++i) {
        const Size from = size;
        size = {strided(size.h, kBottlenecks[i].stride), strided(size.w, kBottlenecks[i].stride)};
        const int y = map(kBottlenecks[i].out, size);
        step("bottleneck" + std::to_string(i / 3 + 1) + "." + std::to_string(i % 3), {x, y},
             [=, &w](const Job&, Call call) {
                 return w.trunk->bottleneck(i, at(x, from), floats(y), call);
             });
        x = y;
    }
    std::vector<Axis> pool_rows, pool_cols;
    for (int bin : kBins) {
        pool_rows.emplace_back(bin, size.h, w.config.ppm_align_corners);
        pool_cols.emplace_back(bin, size.w, w.config.ppm_align_corners);
    }
    const int low = map(128, size);
    step("pyramid_pool", {x, low}, [=, &w](const Job&, Call call) {
        return w.pyramid_pool(at(x, size), pool_rows, pool_cols, floats(low), call);
    });
    add_fusion(high, low, size, large);
}

void Plan::add_fusion(int high, int low, Size small, Size large) {
    const Weights& w = weights_;
    if (w.config.ffm_dense) {
        const int x = low;
        low = map(128, small);
        step("feature_fusion.dense", {x, low}, [=, &w](const Job&, Call call) {
            return w.dense(at(x, small), floats(low), call);
        });
    }
    const Axis rows(small.h, large.h, w.config.ffm_align_corners);
    const Axis cols(small.w, large.w, w.config.ffm_align_corners);
    const int fused = map(128, large, w.trunk->bytes());
    step("feature_fusion", {high, low, fused}, [=, &w](const Job&, Call call) {
        return w.trunk->fusion(at(high, large), floats(low), rows, cols, at(fused), call);
    });
    const int scores = map(w.config.classes, large);
    step("classifier", {fused, scores}, [=, &w](const Job& job, Call call) {
        float* y = job.outputs.scores ? job.outputs.scores : floats(scores);
        return w.trunk->classifier(at(fused, large), y, call);
    });
    add_heads(scores, large);
}

// Heads that are not asked for do nothing; their scratch memory is counted nevertheless.
void Plan::add_heads(int scores, Size size) {
    const Weights& w = weights_;
    const Size out = sizes.out;
    const Axis rows(size.h, out.h, w.config.head_align_corners);
    const Axis cols(size.w, out.w, w.config.head_align_corners);
    const int labels = piece(sizes.batch * pixels(out));
    const auto source = [=](const Outputs& o) { return o.scores ? o.scores : floats(scores); };
    const auto labels_of = [=](const Outputs& o) {
        return o.labels ? o.labels : static_cast<uint8_t*>(at(labels));
    };
    step("argmax_head", {scores, labels}, [=, &w](const Job& job, Call call) -> int64_t {
        const Outputs& o = job.outputs;
        if (call.scratch && (o.labels || o.confidence || o.color || o.overlay))
            w.kernels.argmax_head({source(o), labels_of(o), o.confidence, sizes.batch,
                                   w.config.classes, view(rows), view(cols), call.pool,
                                   call.threads});
        return 0;
    });
    step("overlay", {labels}, [=, &w](const Job& job, Call call) -> int64_t {
        const Outputs& o = job.outputs;
        const auto paint = [&](const uint8_t* frame, bool bgr, uint8_t* y) {
            std::vector<uint8_t> colors(o.colors, o.colors + 3 * w.config.classes);
            for (size_t i = 0; bgr && i < colors.size(); i += 3) std::swap(colors[i], colors[i + 2]);
            w.kernels.overlay({labels_of(o), frame, job.frames.stride, colors.data(),
                               w.config.classes, int(std::nearbyint(256 * o.opacity)), y,
                               int64_t(sizes.batch) * out.h, out.w, call.pool, call.threads});
        };
        if (call.scratch && o.color) paint(nullptr, false, o.color);
        if (call.scratch && o.overlay) paint(job.frames.pixels, job.frames.bgr, o.overlay);
        return 0;
    });
    for (const bool softmax : {true, false})
        step(softmax ? "softmax_head" : "resize", {scores},
             [=, &w](const Job& job, Call call) -> int64_t {
                 float* y = softmax ? job.outputs.probabilities : job.outputs.logits;
                 if (call.scratch && !y) return 0;
                 return w.kernels.dense_head({source(job.outputs), y, sizes.batch, w.config.classes,
                                              softmax, view(rows), view(cols), call.pool,
                                              call.threads, call.scratch});
             });
}

}  // namespace fastscnn
