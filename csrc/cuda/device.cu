#include "device.h"

#include "launch.cuh"

namespace fastscnn {

namespace {

__global__ void probe_kernel() {}

}  // namespace

CudaInfo cuda_info() {
    CudaInfo info{};
    cudaRuntimeGetVersion(&info.runtime_version);
    if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
    if (cudaGetDeviceCount(&info.device_count) != cudaSuccess) info.device_count = 0;
    cudaGetLastError();  // a missing driver is an answer here, not an error to leave behind
    return info;
}

std::string missing_code() {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return explain(error);
}

}  // namespace fastscnn
