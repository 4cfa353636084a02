// Devices: how many there are, what they can do, which is current, and the contexts on them.
#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "standin.h"

namespace standin {

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int device_of_thread = 0;
static thread_local bool context_is_current = false;  // in this thread

static bool used = false;    // this process has called CUDA
static bool forked = false;  // ... and this is a child that it forked afterwards
static bool context_exists[MAX_DEVICES];
static char context_handles[MAX_DEVICES];  // their addresses are the contexts

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) {
    last_error = error;
  }
  return error;
}

static int number_from_environment(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value != nullptr ? atoi(value) : otherwise;
}

// Indices of the devices that CUDA_VISIBLE_DEVICES leaves. As CUDA does, read once, and stop at the
// first entry that is no device.
static const std::vector<int>& visible_devices() {
  static const std::vector<int> devices = [] {
    const int physical = std::min(number_from_environment("FAKE_GPUS", 1), MAX_DEVICES);
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    std::vector<int> chosen;
    if (visible == nullptr) {
      for (int device = 0; device < physical; device++) {
        chosen.push_back(device);
      }
      return chosen;
    }
    std::istringstream entries(visible);
    std::string entry;
    while (std::getline(entries, entry, ',')) {
      char* end = nullptr;
      const long device = strtol(entry.c_str(), &end, 10);
      if (end == entry.c_str() || device < 0 || device >= physical) {
        break;
      }
      chosen.push_back(static_cast<int>(device));
    }
    return chosen;
  }();
  return devices;
}

int device_count() { return static_cast<int>(visible_devices().size()); }

int physical_device(int device) { return visible_devices()[device]; }

int current_device() { return device_of_thread; }

// CUDA's form: 1000 times the major release, plus 10 times the minor one.
static int driver_version() {
  return number_from_environment("FAKE_CUDA_DRIVER_VERSION", RUNTIME_VERSION);
}

// A driver runs every runtime of its own major release and of those before it.
bool driver_too_old() { return driver_version() / 1000 < RUNTIME_VERSION / 1000; }

// 90 for compute capability 9.0.
static int capability() {
  const char* value = getenv("FAKE_CUDA_CAPABILITY");
  return value != nullptr ? static_cast<int>(10 * atof(value) + 0.5) : 90;
}

// CUDA does not survive a fork: the child of a process that used it fails at each call.
static void remember_use() {
  Lock lock;
  if (!used) {
    used = true;
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
  }
}

static cudaError_t start_driver() {
  if (forked) {
    note_refusal("CUDA in a process forked after it was used");
    return cudaErrorInitializationError;
  }
  remember_use();
  if (driver_too_old()) {
    return cudaErrorInsufficientDriver;
  }
  return device_count() > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t start_context() {
  const cudaError_t error = start_driver();
  if (error != cudaSuccess) {
    return fail(error);
  }
  context_exists[device_of_thread] = true;
  context_is_current = true;
  return cudaSuccess;
}

static int attribute(int name) {
  switch (name) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 233472;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrClockRate:
      return 1980000;  // kHz
    case cudaDevAttrMemoryClockRate:
      return 2619000;  // kHz
    case cudaDevAttrGlobalMemoryBusWidth:
      return 5120;  // bits
    case cudaDevAttrMultiProcessorCount:
      return 132;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrComputeCapabilityMajor:
      return capability() / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return capability() % 10;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrL2CacheSize:
      return 50 << 20;
    default:
      return 0;
  }
}

static const char* error_text(int error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInitializationError:
      return "initialization error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case CUDA_ERROR_INVALID_CONTEXT:
      return "invalid device context";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge:
      return "operation would result in a merge of separate capture sequences";
    case cudaErrorStreamCaptureUnmatched:
      return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
    case cudaErrorStreamCaptureWrongThread:
      return "attempt to terminate a thread-local capture sequence from another thread";
    default:
      return "an error of the stand-in for CUDA";
  }
}

}  // namespace standin

using namespace standin;

// ---------------------------------------------------------------- the runtime's calls

EXPORT cudaError_t cudaGetDeviceCount(int* number) {
  *number = 0;
  const cudaError_t error = start_driver();
  if (error == cudaSuccess) {
    *number = device_count();
  }
  return fail(error);
}

EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = device_of_thread;
  return cudaSuccess;
}

// Since CUDA 12 this makes the device's primary context, which takes memory there.
EXPORT cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) {
    return fail(cudaErrorInvalidDevice);
  }
  device_of_thread = device;
  return start_context();
}

EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }

EXPORT const char* cudaGetErrorString(cudaError_t error) { return error_text(error); }

EXPORT const char* cudaGetErrorName(cudaError_t error) { return error_text(error); }

EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = RUNTIME_VERSION;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = attribute(name);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= device_count()) {
    return fail(cudaErrorInvalidDevice);
  }
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "Stand-in H100");
  properties->uuid.bytes[0] = static_cast<char>(1 + physical_device(device));
  properties->totalGlobalMem = memory_total();
  properties->major = attribute(cudaDevAttrComputeCapabilityMajor);
  properties->minor = attribute(cudaDevAttrComputeCapabilityMinor);
  properties->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
  properties->warpSize = attribute(cudaDevAttrWarpSize);
  properties->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  properties->textureAlignment = 512;
  properties->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
  properties->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  properties->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
  properties->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  properties->maxBlocksPerMultiProcessor = 32;
  properties->maxThreadsDim[0] = attribute(cudaDevAttrMaxBlockDimX);
  properties->maxThreadsDim[1] = attribute(cudaDevAttrMaxBlockDimY);
  properties->maxThreadsDim[2] = attribute(cudaDevAttrMaxBlockDimZ);
  properties->maxGridSize[0] = attribute(cudaDevAttrMaxGridDimX);
  properties->maxGridSize[1] = attribute(cudaDevAttrMaxGridDimY);
  properties->maxGridSize[2] = attribute(cudaDevAttrMaxGridDimZ);
  properties->pciBusID = 1 + physical_device(device);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) {
    *least = 0;
  }
  if (greatest != nullptr) {
    *greatest = -5;
  }
  return cudaSuccess;
}

// No device reads another's memory: copies between them pass through the host.
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* possible, int, int) {
  *possible = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", 1 + physical_device(device));
  return cudaSuccess;
}

// ---------------------------------------------------------------- the driver's calls

// The driver's codes are the runtime's.
static CUresult as_driver(cudaError_t error) { return static_cast<CUresult>(error); }

static CUcontext context_of(int device) {
  return reinterpret_cast<CUcontext>(&context_handles[device]);
}

EXPORT CUresult cuInit(unsigned int) {
  if (forked) {
    return as_driver(cudaErrorInitializationError);
  }
  remember_use();
  return device_count() > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
  *version = driver_version();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int* number) {
  *number = device_count();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (ordinal < 0 || ordinal >= device_count()) {
    return CUDA_ERROR_INVALID_DEVICE;
  }
  *device = ordinal;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute name, CUdevice) {
  *value = attribute(name);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (device < 0 || device >= device_count()) {
    return CUDA_ERROR_INVALID_DEVICE;
  }
  Lock lock;
  context_exists[device] = true;
  *context = context_of(device);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int* flags, int* active) {
  Lock lock;
  *flags = 0;
  *active = context_exists[device];
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = context_is_current ? context_of(device_of_thread) : nullptr;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  context_is_current = context != nullptr;
  if (context_is_current) {
    device_of_thread = static_cast<int>(reinterpret_cast<char*>(context) - context_handles);
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
  if (!context_is_current) {
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  *device = device_of_thread;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error_text(error);
  return CUDA_SUCCESS;
}

static int not_modelled() { return cudaErrorNotSupported; }

// torch asks for the driver's functions by name. Those without a model here answer that they are
// not supported.
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned int,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  void* symbol = dlsym(RTLD_DEFAULT, name);
  *function = symbol != nullptr ? symbol : reinterpret_cast<void*>(not_modelled);
  if (result != nullptr) {
    *result = cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}

// Whether this process has a context on the device. A test reads it.
EXPORT int fake_context_exists(int device) { return context_exists[device]; }
