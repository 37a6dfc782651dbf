#include "network.h"

#include <algorithm>
#include <stdexcept>

#include "plan.h"

namespace fastscnn {
namespace {

std::string text(Size s) { return std::to_string(s.h) + "x" + std::to_string(s.w); }

void check(const Frames& f, Size in, Size out) {
    if (!f.pixels && !f.x) throw std::invalid_argument("frame is null: expected its pixels");
    if (f.batch < 1) throw std::invalid_argument("batch of 0 frames: expected 1 or more");
    check_size("frame", f.size, f.pixels ? 1 : kMinSide);
    check_size("size", in, kMinSide);
    check_size("output size", out, 1);
    if (f.pixels && f.stride < 3 * int64_t(f.size.w))
        throw std::invalid_argument("stride of " + std::to_string(f.stride) +
                                    " bytes: expected at least " + std::to_string(3 * f.size.w) +
                                    " for a frame " + std::to_string(f.size.w) + " pixels wide");
    if (!f.pixels && !(f.size == in))
        throw std::invalid_argument("size " + text(in) + ": expected " + text(f.size) +
                                    ", the size of the normalised frame");
}

void check(const Outputs& o, const Frames& f, Size out, int threads) {
    if ((o.color || o.overlay) && !o.colors)
        throw std::invalid_argument("colors is null: expected the classes' colours");
    if (o.overlay && (!f.pixels || !(f.size == out)))
        throw std::invalid_argument("overlay: expected a uint8 frame of the output size " +
                                    text(out));
    if (!(o.opacity >= 0 && o.opacity <= 1))
        throw std::invalid_argument("opacity " + std::to_string(o.opacity) + ": expected 0 to 1");
    if (threads < 1 || threads > kMaxThreads)
        throw std::invalid_argument("threads " + std::to_string(threads) + ": expected 1 to " +
                                    std::to_string(kMaxThreads));
}

}  // namespace

void check_size(const char* name, Size s, int least) {
    if (std::min(s.h, s.w) < least || std::max(s.h, s.w) > kMaxSide)
        throw std::invalid_argument(std::string(name) + " " + text(s) +
                                    ": expected height and width from " + std::to_string(least) +
                                    " to " + std::to_string(kMaxSide));
}

Network::Network(const Model& model, const std::string& isa, int max_sizes)
    : weights_(std::make_unique<Weights>(model, isa)),
      pool_(std::make_unique<Pool>()),
      max_sizes_(size_t(std::max(max_sizes, 1))) {}

Network::~Network() = default;

void Network::run(const Frames& frames, Size in, Size out, const Outputs& outputs, int threads) {
    check(frames, in, out);
    check(outputs, frames, out, threads);
    const std::lock_guard<std::mutex> lock(mutex_);
    Plan& p = plan(frames, in, out);
    p.prepare(threads, *pool_);
    for (size_t i = 0; i < p.steps().size(); ++i) p.run(i, {frames, outputs}, *pool_);
}

std::vector<std::string> Network::steps(const Frames& frames, Size in, Size out) {
    check(frames, in, out);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> names;
    for (const Plan::Step& step : plan(frames, in, out).steps()) names.push_back(step.name);
    return names;
}

void Network::run_step(int step, const Frames& frames, Size in, Size out, const Outputs& outputs,
                       int threads) {
    check(frames, in, out);
    check(outputs, frames, out, threads);
    const std::lock_guard<std::mutex> lock(mutex_);
    Plan& p = plan(frames, in, out);
    p.prepare(threads, *pool_);
    p.run(size_t(step), {frames, outputs}, *pool_);
}

Size Network::scores_size(Size in) const {
    const auto along = [&](int side) {
        const int stem = StemAxis(side, config().stem_padding).out;
        return ((stem - 1) / 2 + 1 - 1) / 2 + 1;
    };
    return {along(in.h), along(in.w)};
}

int64_t Network::bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t sum = 0;
    for (const auto& p : plans_) sum += p->bytes();
    return sum;
}

const NetworkConfig& Network::config() const { return weights_->config; }

const char* Network::precision() const { return weights_->precision(); }

Plan& Network::plan(const Frames& frames, Size in, Size out) {
    const Sizes sizes{frames.batch, frames.size, in, out};
    for (auto p = plans_.begin(); p != plans_.end(); ++p)
        if ((*p)->sizes == sizes) {
            plans_.splice(plans_.begin(), plans_, p);
            return *plans_.front();
        }
    while (plans_.size() >= max_sizes_) plans_.pop_back();
    plans_.push_front(std::make_unique<Plan>(*weights_, sizes));
    return *plans_.front();
}

}  // namespace fastscnn
