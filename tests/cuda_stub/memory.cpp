// Memory: of the devices, with its limit, and pinned memory of the host; copies and fills.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "standin.h"

namespace standin {

struct Block {
  size_t bytes;
  int device;  // -1: pinned memory of the host
};

static std::map<const char*, Block> device_blocks;
static std::map<const char*, Block> pinned_blocks;
static size_t used[MAX_DEVICES];
static size_t peak[MAX_DEVICES];

size_t memory_total() {
  const char* value = getenv("FAKE_GPU_MEM");
  return value != nullptr ? static_cast<size_t>(atof(value)) : size_t{80} << 30;
}

// The block that holds a pointer, or null.
static const Block* block_of(const std::map<const char*, Block>& blocks, const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) {
    return nullptr;
  }
  const auto& [start, block] = *std::prev(next);
  return address < start + block.bytes ? &block : nullptr;
}

bool device_of_pointer(const void* pointer, int* device) {
  Lock lock;
  const Block* block = block_of(device_blocks, pointer);
  if (block == nullptr) {
    return false;
  }
  *device = block->device;
  return true;
}

// Pages are taken from the system only where a copy or a fill touches them.
static cudaError_t allocate(void** pointer, size_t bytes) {
  const int device = current_device();
  count(ALLOCATIONS);
  LedgerLock ledger_lock;
  if (held_by_others(device) + used[device] + bytes > memory_total()) {
    count(OUT_OF_MEMORY);
    return cudaErrorMemoryAllocation;
  }
  void* memory = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return cudaErrorMemoryAllocation;
  }
  used[device] += bytes;
  publish(device, used[device]);
  peak[device] = std::max(peak[device], used[device]);
  device_blocks[static_cast<char*>(memory)] = {bytes, device};
  *pointer = memory;
  return cudaSuccess;
}

// Kernels write nothing, so what is read where one should have written is whatever the memory held
// before, and may well be no number. A program that must not meet that asks that all of a device's
// memory read as zero.
static bool stays_blank() {
  static const bool blank = getenv("FAKE_CUDA_BLANK") != nullptr;
  return blank;
}

static Counter kind_of_copy(const void* destination, const void* source) {
  const bool to_device = block_of(device_blocks, destination) != nullptr;
  const bool from_device = block_of(device_blocks, source) != nullptr;
  if (to_device && from_device) {
    return DEVICE_TO_DEVICE;
  }
  if (!to_device) {
    return DEVICE_TO_HOST;
  }
  const bool pinned = block_of(pinned_blocks, source) != nullptr;
  return pinned ? HOST_TO_DEVICE_PINNED : HOST_TO_DEVICE_PAGEABLE;
}

static std::string name_of_copy(Counter kind) {
  switch (kind) {
    case DEVICE_TO_DEVICE:
      return "copy device to device";
    case DEVICE_TO_HOST:
      return "copy device to host";
    case HOST_TO_DEVICE_PINNED:
      return "copy pinned host to device";
    default:
      return "copy pageable host to device";
  }
}

}  // namespace standin

using namespace standin;

// ---------------------------------------------------------------- memory of a device

EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  if (refused_as_unsafe("cudaMalloc")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return fail(allocate(pointer, bytes));
}

EXPORT cudaError_t cudaFree(void* pointer) {
  Lock lock;
  if (pointer == nullptr) {
    return cudaSuccess;
  }
  if (refused_as_unsafe("cudaFree")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  auto block = device_blocks.find(static_cast<char*>(pointer));
  if (block == device_blocks.end()) {
    return fail(cudaErrorInvalidValue);
  }
  count(FREES);
  munmap(pointer, std::max<size_t>(block->second.bytes, 1));
  const int device = block->second.device;
  used[device] -= block->second.bytes;
  LedgerLock ledger_lock;
  publish(device, used[device]);
  device_blocks.erase(block);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  LedgerLock ledger_lock;
  const size_t held = held_by_others(current_device()) + used[current_device()];
  *total_bytes = memory_total();
  *free_bytes = *total_bytes - held;
  return cudaSuccess;
}

// ---------------------------------------------------------------- pinned memory of the host

EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned int) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  if (refused_as_unsafe("cudaHostAlloc")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (posix_memalign(pointer, 4096, std::max<size_t>(bytes, 1)) != 0) {
    return fail(cudaErrorMemoryAllocation);
  }
  count(PINNED_ALLOCATIONS);
  pinned_blocks[static_cast<char*>(*pointer)] = {bytes, -1};
  return cudaSuccess;
}

EXPORT cudaError_t cudaFreeHost(void* pointer) {
  Lock lock;
  if (refused_as_unsafe("cudaFreeHost")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (pinned_blocks.erase(static_cast<char*>(pointer)) > 0) {
    free(pointer);
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned int) {
  Lock lock;
  if (refused_as_unsafe("cudaHostRegister")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  pinned_blocks[static_cast<char*>(pointer)] = {bytes, -1};
  return cudaSuccess;
}

EXPORT cudaError_t cudaHostUnregister(void* pointer) {
  Lock lock;
  if (refused_as_unsafe("cudaHostUnregister")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  pinned_blocks.erase(static_cast<char*>(pointer));
  return cudaSuccess;
}

// ---------------------------------------------------------------- what a pointer is

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                            const void* pointer) {
  Lock lock;
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  int device = 0;
  if (device_of_pointer(pointer, &device)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = device;
    attributes->devicePointer = const_cast<void*>(pointer);
  } else if (block_of(pinned_blocks, pointer) != nullptr) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(pointer);
    attributes->devicePointer = const_cast<void*>(pointer);
  }
  return cudaSuccess;
}

// Triton asks this of each argument before a launch. A kernel of the current device can read that
// device's memory and pinned memory, and no other device's, since there is no peer access here.
EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute name, CUdeviceptr pointer) {
  if (name != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  Lock lock;
  const void* address = reinterpret_cast<const void*>(pointer);
  int device = 0;
  if (device_of_pointer(address, &device)) {
    if (device != current_device()) {
      note_refusal("a pointer of another device");
      return CUDA_ERROR_INVALID_VALUE;
    }
  } else if (block_of(pinned_blocks, address) == nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *static_cast<CUdeviceptr*>(data) = pointer;
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- copies and fills

EXPORT cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes,
                                   cudaMemcpyKind, cudaStream_t stream) {
  Lock lock;
  const cudaError_t context_error = start_context();
  if (context_error != cudaSuccess) {
    return context_error;
  }
  const Counter kind = kind_of_copy(destination, source);
  bool captured = false;
  const cudaError_t error = submit(stream_of(stream), name_of_copy(kind), kind, &captured);
  const bool to_device = kind != DEVICE_TO_HOST;
  if (error == cudaSuccess && !captured && !(to_device && stays_blank())) {
    memcpy(destination, source, bytes);
  }
  return error;
}

// The host waits for the copy, and the copy for the legacy stream.
EXPORT cudaError_t cudaMemcpy(void* destination, const void* source, size_t bytes,
                              cudaMemcpyKind kind) {
  Lock lock;
  if (refused_as_unsafe("cudaMemcpy")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  const cudaError_t error = cudaMemcpyAsync(destination, source, bytes, kind, nullptr);
  if (error == cudaSuccess) {
    count(SYNCHRONISATIONS);
  }
  return error;
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void* destination, int, const void* source, int,
                                       size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, stream);
}

EXPORT cudaError_t cudaMemsetAsync(void* destination, int value, size_t bytes,
                                   cudaStream_t stream) {
  Lock lock;
  bool captured = false;
  const cudaError_t error = submit(stream_of(stream), "fill", FILLS, &captured);
  if (error == cudaSuccess && !captured && !stays_blank()) {
    memset(destination, value, bytes);
  }
  return error;
}

EXPORT cudaError_t cudaMemset(void* destination, int value, size_t bytes) {
  Lock lock;
  if (refused_as_unsafe("cudaMemset")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return cudaMemsetAsync(destination, value, bytes, nullptr);
}

// ---------------------------------------------------------------- for tests

EXPORT size_t fake_memory_used(int device) {
  Lock lock;
  return used[device];
}

EXPORT size_t fake_memory_peak(int device) {
  Lock lock;
  return peak[device];
}

EXPORT void fake_reset_memory_peak() {
  Lock lock;
  std::copy(std::begin(used), std::end(used), std::begin(peak));
}
