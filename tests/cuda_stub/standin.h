// What the parts of the stand-in share: devices, streams, captures, and the counters that tests
// read.
//
// The stand-in answers for the CUDA runtime, the driver, cuBLAS and cuDNN. Device memory is host
// memory and kernels do nothing, so the numbers mean nothing; the rules about current devices,
// stream capture and memory are those of CUDA, as its documentation gives them, and breaking one is
// refused with CUDA's own error.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace standin {

constexpr int MAX_DEVICES = 16;

// One lock for everything. Recursive, because one call of the API is often made of others.
extern std::recursive_mutex mutex;

struct Lock {
  std::lock_guard<std::recursive_mutex> guard{mutex};
};

// ---------------------------------------------------------------- counters

enum Counter {
  LAUNCHES,                 // kernels started outside a capture
  CAPTURED_NODES,           // kernels, copies and fills recorded by a capture
  GRAPH_REPLAYS,            // graphs launched
  REPLAYED_NODES,           // nodes of the graphs launched
  SYNCHRONISATIONS,         // the host waited for a device, a stream or an event
  HOST_TO_DEVICE_PAGEABLE,  // copies; the host waits while one is staged
  HOST_TO_DEVICE_PINNED,
  DEVICE_TO_HOST,
  DEVICE_TO_DEVICE,
  FILLS,               // cudaMemset
  ALLOCATIONS,         // cudaMalloc
  FREES,               // cudaFree
  PINNED_ALLOCATIONS,  // cudaHostAlloc
  OUT_OF_MEMORY,       // allocations that did not fit
  REFUSED,             // calls that broke a rule of CUDA
  COUNTERS,
};

void count(Counter counter, long amount = 1);

// What happened, by name: kernels launched and captured, nodes replayed, calls refused.
enum Tally { LAUNCHED, CAPTURED, REPLAYED, REFUSALS, TALLIES };

void tally(Tally table, const std::string& name, long amount = 1);

// Count a call that breaks a rule, and say so on stderr where FAKE_CUDA_LOG is set.
void note_refusal(const std::string& what);

// Keep `error` for cudaGetLastError, as the runtime does, and return it.
cudaError_t fail(cudaError_t error);

// ---------------------------------------------------------------- devices

int device_count();  // that CUDA_VISIBLE_DEVICES leaves
int physical_device(int device);
bool driver_too_old();
int current_device();  // of this thread

// Make the primary context of the current device, as any call does that needs one.
// Fails in a process forked from one that had used CUDA, and where the driver is too old.
cudaError_t start_context();

// ---------------------------------------------------------------- streams and captures

struct Node {
  std::string name;
  std::vector<int> parents;  // indices of nodes
};

struct Graph {
  std::vector<Node> nodes;
};

struct Stream;

struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::thread::id thread;  // that began it
  Stream* origin;
  std::vector<Stream*> streams;  // the origin, and those that joined by waiting for an event
  Graph graph;                   // so far
  bool invalidated = false;
};

struct Stream {
  int device;
  bool blocking;  // it waits for the legacy stream, and the legacy stream for it
  bool legacy = false;
  Capture* capture = nullptr;  // the ongoing capture that it is part of
  std::vector<int> tips;       // nodes of that capture which its next node will depend on
};

// The stream of a handle; of null, the legacy stream of the current device.
Stream* stream_of(cudaStream_t handle);

// Whether a call that CUDA names potentially unsafe is forbidden to this thread at this moment.
// Then it is counted as refused, and the captures that forbid it are invalidated.
bool refused_as_unsafe(const char* call);

// One piece of work on a stream: counted, or recorded as a node where the stream is capturing.
// `captured` says which.
cudaError_t submit(Stream* stream, const std::string& name, Counter counter, bool* captured);

// One kernel on a stream, which must belong to the current device.
cudaError_t launch(const std::string& name, cudaStream_t handle);

// ---------------------------------------------------------------- memory

size_t memory_total();
bool device_of_pointer(const void* pointer, int* device);

// Held while this process looks at what others hold, and changes what it holds itself.
struct LedgerLock {
  LedgerLock();
  ~LedgerLock();
};

size_t held_by_others(int device);       // bytes
void publish(int device, size_t bytes);  // that this process now holds

}  // namespace standin
