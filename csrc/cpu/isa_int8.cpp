#include <stdexcept>

#include "packed_int8.h"

namespace fastscnn {

#if defined(__x86_64__)
namespace avx512vnni {
extern const KernelsInt8 kernels_int8;
}
namespace avx512 {
extern const KernelsInt8 kernels_int8;
}
namespace avx2 {
extern const KernelsInt8 kernels_int8;
}
#endif
#if defined(__aarch64__)
namespace neon {
extern const KernelsInt8 kernels_int8;
}
#else
namespace portable {
extern const KernelsInt8 kernels_int8;
}
#endif

std::vector<const KernelsInt8*> available_kernels_int8() {
    const KernelsInt8* const all[] = {
#if defined(__x86_64__)
        &avx512vnni::kernels_int8,
        &avx512::kernels_int8,
        &avx2::kernels_int8,
#endif
#if defined(__aarch64__)
        &neon::kernels_int8,
#else
        &portable::kernels_int8,
#endif
    };
    std::vector<const KernelsInt8*> found;
    for (const KernelsInt8* k : all) {
        bool runs = false;
        for (const Kernels* floats : available_kernels())
            runs |= std::string(k->floats) == floats->name;
#if defined(__x86_64__)
        if (k == &avx512vnni::kernels_int8) runs &= bool(__builtin_cpu_supports("avx512vnni"));
#endif
        if (runs) found.push_back(k);
    }
    return found;
}

bool int8_pays() {
    return std::string(available_kernels_int8().front()->name).find("avx512") == 0;
}

const KernelsInt8& find_kernels_int8(const std::string& name) {
    std::string names;
    for (const KernelsInt8* k : available_kernels_int8()) {
        if (name.empty() || name == k->name) return *k;
        names += (names.empty() ? "" : ", ") + std::string(k->name);
    }
    throw std::invalid_argument("instruction set '" + name +
                                "' is not available here; choose one of: " + names);
}

}  // namespace fastscnn
