// CUDA kernels on the CPU, for tests: the names of csrc/cuda/ptx.cuh, a fiber per thread.
//
// A block runs its threads one after the other, in an order that a seed decides; a fiber gives way
// at barriers and warp collectives only. What a GPU does not check is checked here and thrown:
// accesses outside the registered global buffers or the block's shared memory, misalignment, a
// barrier that not all threads reach, diverged warp collectives, cp.async never waited for, and
// races: a shared word touched by two threads between two barriers, once or more for writing.
// Shared memory starts as NaN; cp.async leaves NaN until its wait.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct CUstream_st;

namespace on_host {

enum class Access { kRead, kWrite };

dim3 thread_index();
dim3 block_index();
dim3 grid_size();
char* shared_memory();
void barrier();
void check_global(const void* p, int bytes, const char* what);
void check_shared(const void* p, int bytes, Access access, const char* what);
void copy_async(void* shared, const void* global);
void commit_copies();
void wait_copies(int pending);

// What a lane hands to its warp in a collective, and all lanes' values after it.
struct Lane {
    const void* row;
    uint32_t a[4], b[2];
};
struct Product {
    float value[16][8];
};
const Product& product(const Lane& mine, bool bf16);

void load_matrices(uint32_t* r, const void* row, int matrices, bool transposed);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

// Runs every thread of every block; throws what a check found.
void run(dim3 grid, int threads, int shared, const std::function<void()>& kernel);

struct Settings {
    unsigned seed = 0;             // 0, 1: threads forward, backward; more: shuffled
    int capability = 90;           // of the pretended device
    int multiprocessors = 132;
    int shared = 227 * 1024;
    int earlier_error = 0;         // pretended: of a call before a launch, and of
    int code_error = 0;            // what looks for a kernel's code (cudaError_t)
};
extern Settings settings;
void clear_buffers();
void add_buffer(uintptr_t address, int64_t bytes);

}  // namespace on_host

#define threadIdx (on_host::thread_index())
#define blockIdx (on_host::block_index())
#define gridDim (on_host::grid_size())
#define __syncthreads on_host::barrier

inline void __threadfence() {}
inline float __expf(float x) { return std::exp(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
using std::fmaf;
using std::max;
using std::min;

namespace fastscnn {

struct F16;
struct BF16;

template <class T>
constexpr bool has_tensor_cores() {
    return true;
}

inline char* shared_memory() { return on_host::shared_memory(); }

template <class V>
V load_global(const void* p) {
    on_host::check_global(p, sizeof(V), "load");
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}

template <class V>
V load_fresh(const void* p) {
    return load_global<V>(p);
}

template <class V>
void store_global(void* p, V v) {
    on_host::check_global(p, sizeof(V), "store");
    std::memcpy(p, &v, sizeof(V));
}

template <class V>
V load_shared(const void* p) {
    on_host::check_shared(p, sizeof(V), on_host::Access::kRead, "load");
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}

template <class V>
void store_shared(void* p, V v) {
    on_host::check_shared(p, sizeof(V), on_host::Access::kWrite, "store");
    std::memcpy(p, &v, sizeof(V));
}

inline int add_shared(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline int add_global(int* p, int v) {
    on_host::check_global(p, sizeof(int), "atomic add");
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}

inline void copy_async(void* shared, const void* global) { on_host::copy_async(shared, global); }
inline void commit_copies() { on_host::commit_copies(); }
template <int kPending>
void wait_copies() {
    on_host::wait_copies(kPending);
}

template <int kMatrices>
void load_matrices(uint32_t* r, const void* row) {
    on_host::load_matrices(r, row, kMatrices, false);
}
inline void load_matrix(uint32_t (&r)[4], const void* row) { load_matrices<4>(r, row); }
inline void load_matrix_transposed(uint32_t (&r)[4], const void* row) {
    on_host::load_matrices(r, row, 4, true);
}

// Element (row, column) of c lies in lane 4 (row % 8) + column / 2, register
// 2 (row / 8) + column % 2.
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    on_host::Lane mine{nullptr, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    const on_host::Product& p = on_host::product(mine, std::is_same_v<T, BF16>);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) c[i] += p.value[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
    multiply_add<T>(c, {a[0], a[1], 0, 0}, b, 0);
}

inline float larger(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return NAN;
    return a < b || (a == b && std::signbit(a)) ? b : a;
}

inline float smaller(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return NAN;
    return a > b || (a == b && std::signbit(b)) ? b : a;
}

template <class T>
float2 unpack(uint32_t word) {
    if constexpr (std::is_same_v<T, F16>)
        return {on_host::half_to_float(word), on_host::half_to_float(word >> 16)};
    const uint32_t bits[2] = {word << 16, word & 0xffff0000u};
    float2 v;
    std::memcpy(&v, bits, 8);
    return v;
}

inline uint32_t float_to_bfloat(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <class T>
uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, F16>)
        return on_host::float_to_half(low) | uint32_t(on_host::float_to_half(high)) << 16;
    return float_to_bfloat(low) | float_to_bfloat(high) << 16;
}

template <class T>
uint32_t pack_relu(float low, float high) {
    return pack<T>(larger(low, 0.f), larger(high, 0.f));
}

inline uint32_t shift_right(uint32_t low, uint32_t high, unsigned bits) {
    return static_cast<uint32_t>((uint64_t(high) << 32 | low) >> bits);
}

template <int kIndex>
float byte_of(uint32_t word) {
    return static_cast<float>(word >> 8 * kIndex & 255);
}

template <class T>
uint32_t clamp_pair(uint32_t word, uint32_t low, uint32_t high) {
    const float2 v = unpack<T>(word), a = unpack<T>(low), b = unpack<T>(high);
    return pack<T>(smaller(larger(v.x, a.x), b.x), smaller(larger(v.y, a.y), b.y));
}

}  // namespace fastscnn
