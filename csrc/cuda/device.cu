#include <cuda_runtime.h>

#include "device.h"

namespace fastscnn {

CudaInfo cuda_info() {
    CudaInfo info{};
    cudaRuntimeGetVersion(&info.runtime_version);
    if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
    if (cudaGetDeviceCount(&info.device_count) != cudaSuccess) info.device_count = 0;
    cudaGetLastError();  // a missing driver is an answer here, not an error to leave behind
    return info;
}

}  // namespace fastscnn
