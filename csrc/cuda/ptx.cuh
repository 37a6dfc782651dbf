// Every PTX instruction and memory access of the kernels, behind a few wrappers. Activations and
// weights are 16-bit words; the tags F16 and BF16 say how to read them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fastscnn {

struct F16;
struct BF16;

// Turing multiplies no bf16: its kernels are empty there, and the launchers refuse.
template <class T>
__device__ constexpr bool has_tensor_cores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return !std::is_same_v<T, BF16>;
#else
    return true;
#endif
}

extern __shared__ __align__(16) char dynamic_shared_memory[];
__device__ __forceinline__ char* shared_memory() { return dynamic_shared_memory; }

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// --- Memory: global (read-only, plain, past L1) and shared ---------------------------------------

template <class V>
__device__ __forceinline__ V load_global(const void* p) {
    return __ldg(static_cast<const V*>(p));
}

// What other blocks of the same launch have written: from L2.
template <class V>
__device__ __forceinline__ V load_fresh(const void* p) {
    return __ldcg(static_cast<const V*>(p));
}

template <class V>
__device__ __forceinline__ void store_global(void* p, V v) {
    *static_cast<V*>(p) = v;
}

template <class V>
__device__ __forceinline__ V load_shared(const void* p) {
    return *static_cast<const V*>(p);
}

template <class V>
__device__ __forceinline__ void store_shared(void* p, V v) {
    *static_cast<V*>(p) = v;
}

__device__ __forceinline__ int add_shared(int* p, int v) { return atomicAdd(p, v); }
__device__ __forceinline__ int add_global(int* p, int v) { return atomicAdd(p, v); }

// --- cp.async: 16 bytes to shared memory, complete after commit and wait -------------------------

__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = __ldg(static_cast<const uint4*>(global));
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// --- Tensor cores --------------------------------------------------------------------------------

// One, two or four 8 x 8 matrices; lane 8 m + r gives the address of row r of matrix m.
template <int kMatrices>
__device__ __forceinline__ void load_matrices(uint32_t* r, const void* row) {
    static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
    if constexpr (kMatrices == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
                     : "=r"(r[0])
                     : "r"(shared_address(row))
                     : "memory");
    else if constexpr (kMatrices == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(shared_address(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
}

__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], const void* row) {
    load_matrices<4>(r, row);
}

__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c [16 x 8] += a [16 x 8] b [8 x 8], fp32 accumulation.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
    if constexpr (std::is_same_v<T, F16>)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
#if __CUDA_ARCH__ >= 800
    else
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
#endif
}

// c [16 x 8] += a [16 x 16] b [16 x 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, F16>)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    multiply_add<T>(c, {a[0], a[1]}, b0);  // the same fragments in two steps of 8
    multiply_add<T>(c, {a[2], a[3]}, b1);
#endif
}

// --- The larger and the smaller of a value and a bound; NaN stays NaN, -0 lies below +0 ----------

__device__ __forceinline__ float larger(float a, float bound) {
#if __CUDA_ARCH__ >= 800
    float v;
    asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(v) : "f"(a), "f"(bound));
    return v;
#else
    return a < bound || (a == bound && signbit(a)) ? bound : a;
#endif
}

__device__ __forceinline__ float smaller(float a, float bound) {
#if __CUDA_ARCH__ >= 800
    float v;
    asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(v) : "f"(a), "f"(bound));
    return v;
#else
    return a > bound || (a == bound && signbit(bound)) ? bound : a;
#endif
}

// --- Two values in a word, the first in the low half ---------------------------------------------

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t word) {
    if constexpr (std::is_same_v<T, F16>) {
        float2 v;
        asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
            "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}\n"
            : "=f"(v.x), "=f"(v.y)
            : "r"(word));
        return v;
    } else {
        return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
    }
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, F16>) {
        const __half2_raw raw = __floats2half2_rn(low, high);
        return raw.x | static_cast<uint32_t>(raw.y) << 16;
    } else {
        const __nv_bfloat162_raw raw = __floats2bfloat162_rn(low, high);
        return raw.x | static_cast<uint32_t>(raw.y) << 16;
    }
}

// The same after ReLU.
template <class T>
__device__ __forceinline__ uint32_t pack_relu(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t word;
    if constexpr (std::is_same_v<T, F16>)
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
    else
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return pack<T>(larger(low, 0.f), larger(high, 0.f));
#endif
}

// Both values of a word between those of two others; as `larger` and `smaller`.
template <class T>
__device__ __forceinline__ uint32_t clamp_pair(uint32_t word, uint32_t low, uint32_t high) {
#if __CUDA_ARCH__ >= 800
    uint32_t v;
    if constexpr (std::is_same_v<T, F16>)
        asm("{\n.reg .b32 v;\nmax.NaN.f16x2 v, %1, %2;\nmin.NaN.f16x2 %0, v, %3;\n}\n"
            : "=r"(v)
            : "r"(word), "r"(low), "r"(high));
    else
        asm("{\n.reg .b32 v;\nmax.NaN.bf16x2 v, %1, %2;\nmin.NaN.bf16x2 %0, v, %3;\n}\n"
            : "=r"(v)
            : "r"(word), "r"(low), "r"(high));
    return v;
#else
    const float2 v = unpack<T>(word), a = unpack<T>(low), b = unpack<T>(high);
    return pack<T>(smaller(larger(v.x, a.x), b.x), smaller(larger(v.y, a.y), b.y));
#endif
}

// --- Bytes ---------------------------------------------------------------------------------------

// Four bytes of two words, `bits` (0 to 31) above the lowest.
__device__ __forceinline__ uint32_t shift_right(uint32_t low, uint32_t high, unsigned bits) {
    return __funnelshift_r(low, high, bits);
}

// Byte kIndex of a word as a float: the low bits of 2^23, which is then taken away.
template <int kIndex>
__device__ __forceinline__ float byte_of(uint32_t word) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + kIndex)) - 8388608.f;
}

}  // namespace fastscnn
