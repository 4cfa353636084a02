// Kernels: of torch, registered with the runtime when its libraries load, and of Triton, loaded as
// modules by the driver. A launch is counted under the kernel's name; nothing runs.
#include <cstring>
#include <unordered_map>

#include "standin.h"

namespace standin {

static std::unordered_map<const void*, std::string> kernel_names;

struct Configuration {
  dim3 grid;
  dim3 block;
  size_t shared_memory;
  cudaStream_t stream;
};

// Of the launches that a thread has begun to write, `kernel<<<grid, block>>>(...)`.
static thread_local std::vector<Configuration> configurations;

// A kernel of Triton's. It lives in the context, and so on the device, in which it was loaded.
struct Function {
  std::string name;
  int device;
};

struct Module {
  int device;
};

static std::string name_of(const void* function) {
  Lock lock;
  auto name = kernel_names.find(function);
  return name != kernel_names.end() ? name->second : "a kernel without a name";
}

static bool fits(dim3 grid, dim3 block) {
  const unsigned long threads = 1UL * block.x * block.y * block.z;
  const bool grid_fits =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= 65535 && grid.z <= 65535;
  return grid_fits && threads > 0 && threads <= 1024 && block.z <= 64;
}

// "A kernel launch will fail if it is issued to a stream that is not associated to the current
// device" (Programming Guide, multi-device system).
cudaError_t launch(const std::string& name, cudaStream_t handle) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  Stream* stream = stream_of(handle);
  if (stream->device != current_device()) {
    note_refusal("a launch on a stream of another device");
    return fail(cudaErrorInvalidResourceHandle);
  }
  bool captured = false;
  return submit(stream, name, LAUNCHES, &captured);
}

static cudaError_t launch(const void* function, dim3 grid, dim3 block, cudaStream_t stream) {
  if (!fits(grid, block)) {
    note_refusal("a launch of more threads or blocks than a device takes");
    return fail(cudaErrorInvalidConfiguration);
  }
  return launch(name_of(function), stream);
}

static CUresult launch(CUfunction handle, dim3 grid, dim3 block, CUstream stream) {
  Lock lock;
  const Function* function = reinterpret_cast<const Function*>(handle);
  if (!fits(grid, block)) {
    note_refusal("a launch of more threads or blocks than a device takes");
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (function->device != current_device()) {
    note_refusal("a launch of a kernel loaded on another device");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  return static_cast<CUresult>(launch(function->name, stream));
}

}  // namespace standin

using namespace standin;

// ---------------------------------------------------------------- kernels compiled into torch

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}

EXPORT void __cudaRegisterFatBinaryEnd(void**) {}

EXPORT void __cudaUnregisterFatBinary(void**) {}

EXPORT char __cudaInitModule(void**) { return 1; }

EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int,
                                   uint3*, uint3*, dim3*, dim3*, int*) {
  Lock lock;
  kernel_names[function] = name;
}

EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

EXPORT unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_memory,
                                                void* stream) {
  configurations.push_back({grid, block, shared_memory, static_cast<cudaStream_t>(stream)});
  return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_memory,
                                              void* stream) {
  const Configuration configuration = configurations.back();
  configurations.pop_back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_memory = configuration.shared_memory;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t,
                                      cudaStream_t stream) {
  return launch(static_cast<const void*>(kernel), grid, block, stream);
}

EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t,
                                    cudaStream_t stream) {
  return launch(function, grid, block, stream);
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration,
                                       const void* function, void**) {
  return launch(function, configuration->gridDim, configuration->blockDim, configuration->stream);
}

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = 90;
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                          int, size_t,
                                                                          unsigned int) {
  *blocks = 2;
  return cudaSuccess;
}

// Constants of torch's kernels: one place that nothing reads.
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char memory[1 << 16];
  *address = memory;
  return cudaSuccess;
}

// ---------------------------------------------------------------- kernels that Triton compiles

// Loading code allocates and waits: CUDA forbids it while a stream is capturing. So a kernel of
// Triton's has to have run once before the step that uses it is captured.
EXPORT CUresult cuModuleLoadData(CUmodule* module, const void*) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return static_cast<CUresult>(error);
  }
  if (refused_as_unsafe("cuModuleLoadData")) {
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  *module = reinterpret_cast<CUmodule>(new Module{current_device()});
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
  Lock lock;
  if (refused_as_unsafe("cuModuleUnload")) {
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  delete reinterpret_cast<Module*>(module);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const int device = reinterpret_cast<Module*>(module)->device;
  *function = reinterpret_cast<CUfunction>(new Function{name, device});
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute name, CUfunction) {
  switch (name) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = 32;
      break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = 1024;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

EXPORT CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                               unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                               unsigned int block_z, unsigned int, CUstream stream, void**,
                               void**) {
  return launch(function, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), stream);
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* configuration, CUfunction function, void**,
                                 void**) {
  const dim3 grid(configuration->gridDimX, configuration->gridDimY, configuration->gridDimZ);
  const dim3 block(configuration->blockDimX, configuration->blockDimY, configuration->blockDimZ);
  return launch(function, grid, block, configuration->hStream);
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  *clusters = 1;
  return CUDA_SUCCESS;
}
