#include "isa.h"

#include <stdexcept>

namespace fastscnn {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#else
namespace portable {
extern const Kernels kernels;
}
#endif

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    // These ask the operating system too, which must save the wide registers.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512::kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.push_back(&avx2::kernels);
#endif
#if defined(__aarch64__)
    found.push_back(&neon::kernels);
#else
    found.push_back(&portable::kernels);
#endif
    return found;
}

std::vector<const Kernels*> available_kernels_bf16() {
#if defined(__x86_64__)
    if (available_kernels()[0] == &avx512::kernels && __builtin_cpu_supports("avx512bf16"))
        return {&avx512bf16::kernels};
#endif
    return {};
}

const Kernels& find_kernels(const std::string& name) {
    std::string names;
    std::vector<const Kernels*> all = available_kernels();
    for (const Kernels* k : available_kernels_bf16()) all.push_back(k);
    for (const Kernels* k : all) {
        if (name.empty() || name == k->name) return *k;
        names += (names.empty() ? "" : ", ") + std::string(k->name);
    }
    throw std::invalid_argument("instruction set '" + name +
                                "' is not available here; choose one of: " + names);
}

}  // namespace fastscnn
