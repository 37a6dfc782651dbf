// A checked launch, and what the launchers need to know of the present GPU.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastscnn {

struct Device {
    int capability;       // e.g. 90
    int multiprocessors;
    int shared;           // largest shared memory of a block, bytes
    std::string name;
};

inline Device present_device() {
    static thread_local Device known[64];
    int id = 0;
    if (cudaGetDevice(&id) != cudaSuccess || id >= 64) return {};
    Device& d = known[id];
    if (d.capability == 0) {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, id) != cudaSuccess) return {};
        d = {p.major * 10 + p.minor, p.multiProcessorCount, int(p.sharedMemPerBlockOptin), p.name};
    }
    return d;
}

// The reason and, where this build lacks code for the present GPU, how to build it.
inline std::string explain(cudaError_t error) {
    if (error == cudaErrorIllegalAddress || error == cudaErrorMisalignedAddress ||
        error == cudaErrorIllegalInstruction || error == cudaErrorLaunchFailure)
        return std::string(cudaGetErrorString(error)) +
               " (in this or an earlier kernel; only a new process can use the GPU again)";
    if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction &&
        error != cudaErrorUnsupportedPtxVersion)
        return cudaGetErrorString(error);
    const Device d = present_device();
    const std::string code = std::to_string(d.capability);
    return "this build has no code for " + d.name + " (sm_" + code +
           "); rebuild with FASTSCNN_CUDA=1 and FASTSCNN_CUDA_ARCHS unset or containing " + code;
}

// "" or what went wrong: the kernel, its launch parameters, the reason, the fix where there is one.
template <class Params>
std::string launch(const char* name, void (*kernel)(Params), dim3 grid, int threads, int shared,
                   cudaStream_t stream, Params params) {
    const std::string what = std::string(name) + " <<<(" + std::to_string(grid.x) + ", " +
                             std::to_string(grid.y) + ", " + std::to_string(grid.z) + "), " +
                             std::to_string(threads) + ", " + std::to_string(shared) + ">>>: ";
    cudaError_t error = cudaPeekAtLastError();
    if (error != cudaSuccess) {
        cudaGetLastError();
        return what + "not launched, an earlier CUDA call failed: " + explain(error);
    }
    constexpr int kDefaultShared = 48 * 1024;
    if (shared > kDefaultShared)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    void* arguments[] = {&params};
    if (error == cudaSuccess)
        error = cudaLaunchKernel(kernel, grid, dim3(threads), arguments, shared, stream);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return what + explain(error);
}

}  // namespace fastscnn
