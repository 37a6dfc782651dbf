// The calls of the CUDA runtime that csrc/cuda/{launch.cuh,device.cu} make, on the pretended device.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_on_host.h"

using cudaStream_t = CUstream_st*;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorIllegalAddress = 700,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,  // here: a check of the emulation found something
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {};
struct cudaDeviceProp {
    char name[16];
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};

namespace on_host {

inline std::string finding;  // of the last launch

// Launches that were written down and not run, where `recording`.
struct Recorded {
    int64_t function;  // offset of the kernel in this module
    dim3 grid;
    unsigned threads;
    size_t shared;
    std::string params;  // as they lie in memory
};
inline bool recording = false;
inline std::vector<Recorded> recorded;

}  // namespace on_host

inline const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorLaunchFailure) return on_host::finding.c_str();
    return error == cudaErrorIllegalAddress ? "an illegal memory access was encountered"
                                            : "invalid argument";
}

inline cudaError_t cudaPeekAtLastError() { return cudaError_t(on_host::settings.earlier_error); }

inline cudaError_t cudaGetLastError() {
    const cudaError_t error = cudaPeekAtLastError();
    on_host::settings.earlier_error = 0;
    return error;
}

// A number of its own for every device that was pretended: launchers remember what they asked.
inline cudaError_t cudaGetDevice(int* id) {
    static std::mutex mutex;
    static std::vector<on_host::Settings> seen;
    const std::lock_guard<std::mutex> lock(mutex);
    const on_host::Settings& now = on_host::settings;
    for (*id = 0; *id < int(seen.size()); ++*id)
        if (seen[*id].capability == now.capability && seen[*id].shared == now.shared &&
            seen[*id].multiprocessors == now.multiprocessors)
            return cudaSuccess;
    seen.push_back(now);
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    const on_host::Settings& s = on_host::settings;
    *p = {"the host", s.capability / 10, s.capability % 10, s.multiprocessors, size_t(s.shared)};
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 0;
    return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
    return cudaError_t(on_host::settings.code_error);
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int shared) {
    return shared > on_host::settings.shared ? cudaErrorInvalidValue : cudaSuccess;
}

template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
    if (on_host::settings.code_error) return cudaError_t(on_host::settings.code_error);
    if (on_host::recording) {
        Dl_info about{};
        dladdr(reinterpret_cast<const void*>(kernel), &about);
        const auto at = reinterpret_cast<const char*>(kernel);
        on_host::recorded.push_back(
            {at - static_cast<const char*>(about.dli_fbase), grid, block.x, shared,
             std::string(static_cast<const char*>(arguments[0]), sizeof(Params))});
        return cudaSuccess;
    }
    try {
        on_host::run(grid, block.x, int(shared),
                     [&] { kernel(*static_cast<Params*>(arguments[0])); });
    } catch (const std::exception& error) {
        on_host::finding = error.what();
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}
