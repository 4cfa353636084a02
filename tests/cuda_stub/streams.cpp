// Streams, events, captures and graphs: the rules of stream capture are here.
//
// They are those of the CUDA Programming Guide ("CUDA Graphs", prohibited and unhandled operations,
// invalidation, cross-stream dependencies) and of the runtime's reference for
// cudaStreamBeginCapture and cudaThreadExchangeStreamCaptureMode.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "standin.h"

namespace standin {

struct Event {
  int device;
  bool timing;
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
  unsigned long long capture = 0;  // its id, where it was last recorded in one
  std::vector<int> tips;           // nodes of that capture to wait for
};

static std::set<Capture*> captures;  // those that are ongoing
static unsigned long long next_capture = 1;
static thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

// ---------------------------------------------------------------- streams

Stream* stream_of(cudaStream_t handle) {
  static std::map<int, Stream> legacy_streams;
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    Stream& stream = legacy_streams[current_device()];
    stream.device = current_device();
    stream.blocking = true;
    stream.legacy = true;
    return &stream;
  }
  return reinterpret_cast<Stream*>(handle);
}

static bool takes_part(const Capture* capture, int device) {
  auto on_device = [device](const Stream* stream) { return stream->device == device; };
  return std::any_of(capture->streams.begin(), capture->streams.end(), on_device);
}

static void invalidate(Capture* capture) { capture->invalidated = true; }

// A blocking stream and the legacy stream of its device wait for one another: work on the legacy
// stream would depend on the capture, which does not run. Then that capture, or null.
static Capture* capture_awaited_by(const Stream* stream) {
  if (!stream->legacy) {
    return nullptr;
  }
  for (Capture* capture : captures) {
    for (const Stream* member : capture->streams) {
      if (member->blocking && member->device == stream->device) {
        return capture;
      }
    }
  }
  return nullptr;
}

static bool refused_as_implicit(const Stream* stream, const std::string& what) {
  Capture* capture = capture_awaited_by(stream);
  if (capture == nullptr) {
    return false;
  }
  note_refusal(what + " on the legacy stream while a blocking stream captures");
  invalidate(capture);
  return true;
}

cudaError_t submit(Stream* stream, const std::string& name, Counter counter, bool* captured) {
  Lock lock;
  *captured = false;
  if (refused_as_implicit(stream, name)) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  Capture* capture = stream->capture;
  if (capture == nullptr) {
    count(counter);
    if (counter == LAUNCHES) {
      tally(LAUNCHED, name);
    }
    return cudaSuccess;
  }
  if (capture->invalidated) {
    return fail(cudaErrorStreamCaptureInvalidated);
  }
  *captured = true;
  count(CAPTURED_NODES);
  tally(CAPTURED, name);
  capture->graph.nodes.push_back({name, stream->tips});
  stream->tips = {static_cast<int>(capture->graph.nodes.size()) - 1};
  return cudaSuccess;
}

// ---------------------------------------------------------------- calls that captures forbid

// Whether a capture forbids this thread potentially unsafe calls.
static bool forbids_unsafe_calls(const Capture* capture) {
  if (mode_of_thread == cudaStreamCaptureModeRelaxed) {
    return false;
  }
  if (capture->thread == std::this_thread::get_id()) {
    return capture->mode != cudaStreamCaptureModeRelaxed;
  }
  return mode_of_thread == cudaStreamCaptureModeGlobal &&
         capture->mode == cudaStreamCaptureModeGlobal;
}

bool refused_as_unsafe(const char* call) {
  Lock lock;
  bool refused = false;
  for (Capture* capture : captures) {
    if (forbids_unsafe_calls(capture)) {
      invalidate(capture);
      refused = true;
    }
  }
  if (refused) {
    note_refusal(std::string(call) + " during a capture");
  }
  return refused;
}

static bool refused_as_capturing(const Stream* stream, const char* call) {
  if (stream->capture == nullptr) {
    return false;
  }
  note_refusal(std::string(call) + " on a capturing stream");
  invalidate(stream->capture);
  return true;
}

static Capture* ongoing_capture(unsigned long long id) {
  for (Capture* capture : captures) {
    if (capture->id == id) {
      return capture;
    }
  }
  return nullptr;
}

static bool refused_as_captured(const Event* event, const char* call) {
  if (event->capture == 0) {
    return false;
  }
  note_refusal(std::string(call) + " on an event recorded in a capture");
  Capture* capture = ongoing_capture(event->capture);
  if (capture != nullptr) {
    invalidate(capture);
  }
  return true;
}

// ---------------------------------------------------------------- the end of a capture

// Whether all that was captured leads to the origin stream's last nodes.
static bool is_joined(const Capture* capture) {
  const std::vector<Node>& nodes = capture->graph.nodes;
  std::vector<bool> reached(nodes.size());
  for (int node : capture->origin->tips) {
    reached[node] = true;
  }
  // A node's parents come before it.
  for (int node = static_cast<int>(nodes.size()) - 1; node >= 0; node--) {
    if (!reached[node]) {
      return false;
    }
    for (int parent : nodes[node].parents) {
      reached[parent] = true;
    }
  }
  return true;
}

static void end(Capture* capture) {
  for (Stream* stream : capture->streams) {
    stream->capture = nullptr;
    stream->tips.clear();
  }
  captures.erase(capture);
}

static cudaStreamCaptureStatus status_of(const Stream* stream) {
  if (stream->capture == nullptr) {
    return cudaStreamCaptureStatusNone;
  }
  return stream->capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
}

static cudaError_t create_stream(cudaStream_t* handle, unsigned int flags) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  Stream* stream = new Stream;
  stream->device = current_device();
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

static cudaError_t create_event(cudaEvent_t* handle, unsigned int flags) {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  Event* event = new Event;
  event->device = current_device();
  event->timing = (flags & cudaEventDisableTiming) == 0;
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}

static Event* event_of(cudaEvent_t handle) { return reinterpret_cast<Event*>(handle); }

static Graph* graph_of(cudaGraph_t handle) { return reinterpret_cast<Graph*>(handle); }

static Graph* graph_of(cudaGraphExec_t handle) { return reinterpret_cast<Graph*>(handle); }

}  // namespace standin

using namespace standin;

// ---------------------------------------------------------------- streams

EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create_stream(stream, 0); }

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return create_stream(stream, flags);
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return create_stream(stream, flags);
}

// Streams are few and small: they are kept, so that a handle used too late does no harm.
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock;
  const Stream* stream = stream_of(handle);
  if (refused_as_capturing(stream, "cudaStreamSynchronize")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (refused_as_implicit(stream, "cudaStreamSynchronize")) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  count(SYNCHRONISATIONS);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Lock lock;
  const Stream* stream = stream_of(handle);
  if (refused_as_capturing(stream, "cudaStreamQuery")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (refused_as_implicit(stream, "cudaStreamQuery")) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  return cudaSuccess;
}

// A device that takes part in a capture cannot be waited for, whatever the capture's mode and
// whichever the thread. Captures on other devices are not disturbed.
EXPORT cudaError_t cudaDeviceSynchronize() {
  Lock lock;
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return error;
  }
  bool refused = false;
  for (Capture* capture : captures) {
    if (takes_part(capture, current_device())) {
      invalidate(capture);
      refused = true;
    }
  }
  if (refused) {
    note_refusal("cudaDeviceSynchronize during a capture");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  count(SYNCHRONISATIONS);
  return cudaSuccess;
}

// The host's function runs at once: all work before it is done.
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  Lock lock;
  Stream* stream = stream_of(handle);
  if (stream->capture == nullptr) {
    function(data);
    return cudaSuccess;
  }
  bool captured = false;
  return submit(stream, "host function", CAPTURED_NODES, &captured);
}

// ---------------------------------------------------------------- captures

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock;
  Stream* stream = stream_of(handle);
  if (stream->legacy) {
    note_refusal("a capture of the legacy stream");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->capture != nullptr) {
    return fail(cudaErrorIllegalState);
  }
  Capture* capture = new Capture;
  capture->id = next_capture++;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream;
  capture->streams = {stream};
  stream->capture = capture;
  stream->tips.clear();
  captures.insert(capture);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Lock lock;
  *graph = nullptr;
  const Stream* stream = stream_of(handle);
  Capture* capture = stream->capture;
  if (capture == nullptr) {
    return fail(cudaErrorIllegalState);
  }
  if (stream != capture->origin) {
    note_refusal("the end of a capture on another stream than its own");
    invalidate(capture);
    return fail(cudaErrorStreamCaptureUnmatched);
  }
  const bool own_thread = capture->thread == std::this_thread::get_id();
  if (!own_thread && capture->mode != cudaStreamCaptureModeRelaxed) {
    note_refusal("the end of a capture in another thread than its own");
    invalidate(capture);
    return fail(cudaErrorStreamCaptureWrongThread);
  }
  const bool joined = is_joined(capture);
  const bool invalidated = capture->invalidated;
  Graph* captured = new Graph(capture->graph);
  end(capture);
  delete capture;
  if (invalidated) {
    delete captured;
    return fail(cudaErrorStreamCaptureInvalidated);
  }
  if (!joined) {
    note_refusal("the end of a capture with work that its stream does not wait for");
    delete captured;
    return fail(cudaErrorStreamCaptureUnjoined);
  }
  *graph = reinterpret_cast<cudaGraph_t>(captured);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Lock lock;
  const Stream* stream = stream_of(handle);
  if (capture_awaited_by(stream) != nullptr) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  *status = status_of(stream);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** dependencies,
                                            const cudaGraphEdgeData** edges, size_t* number) {
  Lock lock;
  const Stream* stream = stream_of(handle);
  if (capture_awaited_by(stream) != nullptr) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  *status = status_of(stream);
  if (id != nullptr && stream->capture != nullptr) {
    *id = stream->capture->id;
  }
  if (graph != nullptr) {
    Capture* capture = stream->capture;
    *graph = capture != nullptr ? reinterpret_cast<cudaGraph_t>(&capture->graph) : nullptr;
  }
  if (dependencies != nullptr) {
    *dependencies = nullptr;
  }
  if (edges != nullptr) {
    *edges = nullptr;
  }
  if (number != nullptr) {
    *number = 0;
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, mode_of_thread);
  return cudaSuccess;
}

// ---------------------------------------------------------------- graphs

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* number) {
  *number = graph_of(graph)->nodes.size();
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(graph)));
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph_of(graph);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  Lock lock;
  if (refused_as_unsafe("cudaGraphExecDestroy")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  delete graph_of(executable);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  Lock lock;
  const Stream* stream = stream_of(handle);
  if (refused_as_capturing(stream, "cudaGraphLaunch")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (refused_as_implicit(stream, "cudaGraphLaunch")) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  const Graph* graph = graph_of(executable);
  count(GRAPH_REPLAYS);
  count(REPLAYED_NODES, static_cast<long>(graph->nodes.size()));
  for (const Node& node : graph->nodes) {
    tally(REPLAYED, node.name);
  }
  return cudaSuccess;
}

// ---------------------------------------------------------------- events

EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return create_event(event, 0); }

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return create_event(event, flags);
}

EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event_of(event);
  return cudaSuccess;
}

// An event belongs to the device that was current when it was made, and is recorded there alone.
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle,
                                            unsigned int) {
  Lock lock;
  Event* event = event_of(handle);
  const Stream* stream = stream_of(stream_handle);
  if (event->device != stream->device) {
    note_refusal("an event recorded on a stream of another device");
    return fail(cudaErrorInvalidResourceHandle);
  }
  if (refused_as_implicit(stream, "cudaEventRecord")) {
    return fail(cudaErrorStreamCaptureImplicit);
  }
  if (stream->capture != nullptr && stream->capture->invalidated) {
    return fail(cudaErrorStreamCaptureInvalidated);
  }
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  event->capture = stream->capture != nullptr ? stream->capture->id : 0;
  event->tips = stream->tips;
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle,
                                       unsigned int) {
  Lock lock;
  Stream* stream = stream_of(handle);
  const Event* event = event_of(event_handle);
  Capture* capture = ongoing_capture(event->capture);
  if (capture == nullptr) {
    if (stream->capture != nullptr && event->recorded) {
      note_refusal("a capturing stream that waits for work outside the capture");
      invalidate(stream->capture);
      return fail(cudaErrorStreamCaptureIsolation);
    }
    return cudaSuccess;
  }
  if (stream->legacy) {
    note_refusal("the legacy stream waiting for a captured event");
    invalidate(capture);
    return fail(cudaErrorStreamCaptureImplicit);
  }
  if (stream->capture != nullptr && stream->capture != capture) {
    note_refusal("a capturing stream that waits for another capture");
    invalidate(capture);
    invalidate(stream->capture);
    return fail(cudaErrorStreamCaptureMerge);
  }
  if (stream->capture == nullptr) {
    stream->capture = capture;
    stream->tips.clear();
    capture->streams.push_back(stream);
  }
  for (int node : event->tips) {
    if (std::find(stream->tips.begin(), stream->tips.end(), node) == stream->tips.end()) {
      stream->tips.push_back(node);
    }
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t handle) {
  Lock lock;
  if (refused_as_captured(event_of(handle), "cudaEventQuery")) {
    return fail(cudaErrorCapturedEvent);
  }
  if (refused_as_unsafe("cudaEventQuery")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  Lock lock;
  if (refused_as_captured(event_of(handle), "cudaEventSynchronize")) {
    return fail(cudaErrorCapturedEvent);
  }
  if (refused_as_unsafe("cudaEventSynchronize")) {
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  count(SYNCHRONISATIONS);
  return cudaSuccess;
}

// Milliseconds of this machine's clock between the two records: all work is done at once.
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  Lock lock;
  const Event* first = event_of(start);
  const Event* second = event_of(stop);
  const bool measurable = first->recorded && first->timing && second->recorded && second->timing;
  if (!measurable || first->device != second->device) {
    return fail(cudaErrorInvalidResourceHandle);
  }
  const std::chrono::duration<float, std::milli> elapsed = second->time - first->time;
  *milliseconds = elapsed.count();
  return cudaSuccess;
}
