// Threads and largest shared memory of every kernel, by its template arguments.
#include <cstdio>

#include "argmax_head.cuh"
#include "dsconv.cuh"
#include "feature_fusion.cuh"
#include "inverted_residual.cuh"
#include "learning_to_downsample.cuh"
#include "pyramid_pool.cuh"

using namespace fastscnn;

namespace {

void line(const char* name, int threads, int shared) {
    std::printf("%s\t%d\t%d\n", name, threads, shared);
}

// At the most channels that the network feeds this layout.
template <int kTileH, int kStride, int kOut>
void inverted_residual(int c) {
    using L = InvertedResidualLayout<kTileH, kStride, kOut>;
    char name[80];
    std::snprintf(name, sizeof name, "inverted_residual<%d x 8, stride %d, %d>", kTileH, kStride,
                  kOut);
    line(name, L::kThreads, L::bytes(c));
}

}  // namespace

int main() {
    for (const char* arguments : {"1, false", "1, true", "8, false", "8, true"}) {
        char name[80];
        std::snprintf(name, sizeof name, "argmax_head<%s>", arguments);
        line(name, ArgmaxHeadLayout::kThreads, ArgmaxHeadLayout::kBytes);
    }
    line("dsconv<64, false>", DsconvLayout<64>::kThreads, DsconvLayout<64>::bytes(2, 1, false));
    line("dsconv<64, true>", DsconvLayout<64>::kThreads, DsconvLayout<64>::bytes(1, 1, false));
    line("dsconv<128, false>", DsconvLayout<128>::kThreads, DsconvLayout<128>::bytes(2, 1, false));
    line("dsconv<128, true>", DsconvLayout<128>::kThreads, DsconvLayout<128>::bytes(1, 1, true));
    line("feature_fusion", FeatureFusionLayout::kThreads, FeatureFusionLayout::bytes(4, 128));
    inverted_residual<8, 1, 64>(64);
    inverted_residual<8, 1, 96>(96);
    inverted_residual<8, 1, 128>(128);
    inverted_residual<4, 1, 64>(64);
    inverted_residual<4, 1, 96>(96);
    inverted_residual<4, 1, 128>(128);
    inverted_residual<4, 2, 64>(64);
    inverted_residual<4, 2, 96>(64);
    inverted_residual<4, 2, 128>(64);
    using Large = LearningToDownsampleLayout<4, 8>;
    using Small = LearningToDownsampleLayout<4, 4>;
    line("learning_to_downsample<4 x 8>", Large::kThreads, Large::kBytes);
    line("learning_to_downsample<4 x 4>", Small::kThreads, Small::kBytes);
    // The paper's branches: 4 grids, 50 cells, 32 channels each.
    line("pool_join<1>", PoolJoinLayout<1>::kThreads, PoolJoinLayout<1>::bytes(128, 32, 4, 50));
    line("pool_join<3>", PoolJoinLayout<3>::kThreads, PoolJoinLayout<3>::bytes(128, 32, 4, 50));
    line("pool_rows", PoolRowsLayout::kThreads, PoolRowsLayout::kBytes);
}
