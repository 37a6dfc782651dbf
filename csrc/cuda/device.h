// What the CUDA runtime says about this machine; callable without a driver.
#pragma once

#include <string>

namespace fastscnn {

struct CudaInfo {
    int runtime_version;  // e.g. 13000
    int driver_version;   // 0 without a driver
    int device_count;     // 0 without a driver or without a device
};

CudaInfo cuda_info();

// "" where this build has code for the present GPU, else why kernels cannot run.
std::string missing_code();

}  // namespace fastscnn
