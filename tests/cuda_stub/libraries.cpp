// cuBLAS and cuDNN: handles that know their stream; a product, a convolution or a normalisation is
// one launch. On a card some are two or three (a reduction, a change of layout), so that counts of
// nodes are a lower bound there.
//
// C does not mangle names: a function here lists the arguments that it reads, and those before
// them.
#include <cstdlib>
#include <cstring>

#include "standin.h"

namespace standin {

struct Handle {
  cudaStream_t stream = nullptr;
};

constexpr int SUCCESS = 0;
constexpr int EXECUTION_FAILED = 13;  // CUBLAS_STATUS_EXECUTION_FAILED

static int create_handle(void** handle) {
  const cudaError_t error = start_context();
  if (error != cudaSuccess) {
    return EXECUTION_FAILED;
  }
  *handle = new Handle;
  return SUCCESS;
}

static int set_stream(void* handle, cudaStream_t stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return SUCCESS;
}

static int launch_on(void* handle, const char* name) {
  const cudaStream_t stream = static_cast<Handle*>(handle)->stream;
  return launch(name, stream) == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

// A descriptor of which nothing is remembered.
static int create_descriptor(void** descriptor) {
  *descriptor = calloc(1, 256);
  return SUCCESS;
}

}  // namespace standin

using namespace standin;

#define LAUNCHES_A_KERNEL(NAME) \
  EXPORT int NAME(void* handle) { return launch_on(handle, #NAME); }

// ---------------------------------------------------------------- cuBLAS

EXPORT int cublasCreate_v2(void** handle) { return create_handle(handle); }

EXPORT int cublasDestroy_v2(void* handle) {
  delete static_cast<Handle*>(handle);
  return SUCCESS;
}

EXPORT int cublasSetStream_v2(void* handle, cudaStream_t stream) {
  return set_stream(handle, stream);
}

EXPORT int cublasGetMathMode(void*, int* mode) {
  *mode = 0;
  return SUCCESS;
}

EXPORT int cublasGetPointerMode_v2(void*, int* mode) {
  *mode = 0;
  return SUCCESS;
}

LAUNCHES_A_KERNEL(cublasGemmEx)
LAUNCHES_A_KERNEL(cublasGemmStridedBatchedEx)
LAUNCHES_A_KERNEL(cublasSgemm_v2)
LAUNCHES_A_KERNEL(cublasSgemmEx)
LAUNCHES_A_KERNEL(cublasSgemmStridedBatched)
LAUNCHES_A_KERNEL(cublasSgemv_v2)
LAUNCHES_A_KERNEL(cublasSdot_v2)
LAUNCHES_A_KERNEL(cublasDotEx)
LAUNCHES_A_KERNEL(cublasDgemm_v2)
LAUNCHES_A_KERNEL(cublasDgemmStridedBatched)
LAUNCHES_A_KERNEL(cublasDgemv_v2)
LAUNCHES_A_KERNEL(cublasDdot_v2)

// ---------------------------------------------------------------- cuBLASLt

EXPORT int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*,
                          const void*, const void*, void*, void*, void*, const void*, void*, size_t,
                          cudaStream_t stream) {
  return launch("cublasLtMatmul", stream) == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

// One algorithm is found, and it needs no workspace: a cublasLtMatmulHeuristicResult_t of zeros.
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                          void* result, int* number) {
  constexpr size_t HEURISTIC_RESULT = 96;  // bytes
  memset(result, 0, HEURISTIC_RESULT);
  *number = 1;
  return SUCCESS;
}

EXPORT int cublasLtMatmulDescCreate(void** descriptor, int, int) {
  return create_descriptor(descriptor);
}

EXPORT int cublasLtMatrixLayoutCreate(void** layout, int, unsigned long, unsigned long, long) {
  return create_descriptor(layout);
}

EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  return create_descriptor(preference);
}

// ---------------------------------------------------------------- cuDNN

EXPORT int cudnnCreate(void** handle) { return create_handle(handle); }

EXPORT int cudnnDestroy(void* handle) {
  delete static_cast<Handle*>(handle);
  return SUCCESS;
}

EXPORT int cudnnSetStream(void* handle, cudaStream_t stream) { return set_stream(handle, stream); }

EXPORT int cudnnGetStream(void* handle, cudaStream_t* stream) {
  *stream = static_cast<Handle*>(handle)->stream;
  return SUCCESS;
}

LAUNCHES_A_KERNEL(cudnnConvolutionForward)
LAUNCHES_A_KERNEL(cudnnConvolutionBackwardData)
LAUNCHES_A_KERNEL(cudnnConvolutionBackwardFilter)
LAUNCHES_A_KERNEL(cudnnConvolutionBiasActivationForward)
LAUNCHES_A_KERNEL(cudnnBatchNormalizationForwardTrainingEx)
LAUNCHES_A_KERNEL(cudnnBatchNormalizationForwardInference)
LAUNCHES_A_KERNEL(cudnnBatchNormalizationBackwardEx)
LAUNCHES_A_KERNEL(cudnnPoolingForward)

// Batch norm in fp32 asks how much memory it needs; some, so that it is allocated.
static const size_t BATCH_NORM_MEMORY = 1024;

EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*,
                                                                    void*, void*, void*,
                                                                    size_t* bytes) {
  *bytes = BATCH_NORM_MEMORY;
  return SUCCESS;
}

EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void*, int, int, void*, void*, void*,
                                                             void*, void*, void*, void*,
                                                             size_t* bytes) {
  *bytes = BATCH_NORM_MEMORY;
  return SUCCESS;
}

EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*,
                                                                size_t* bytes) {
  *bytes = BATCH_NORM_MEMORY;
  return SUCCESS;
}

// torch describes a convolution by backend descriptors, asks which engines can do it, and executes
// the plan of one. Every description is accepted here, one engine offers itself, and it needs no
// workspace.
EXPORT int cudnnBackendCreateDescriptor(int, void** descriptor) {
  return create_descriptor(descriptor);
}

EXPORT int cudnnBackendDestroyDescriptor(void* descriptor) {
  free(descriptor);
  return SUCCESS;
}

EXPORT int cudnnBackendFinalize(void*) { return SUCCESS; }

EXPORT int cudnnBackendSetAttribute(void*, int, int, long, const void*) { return SUCCESS; }

EXPORT int cudnnBackendGetAttribute(void*, int, int type, long requested, long* number,
                                    void* elements) {
  constexpr int TYPE_INT64 = 3;        // CUDNN_TYPE_INT64: a workspace's bytes
  constexpr int TYPE_DESCRIPTOR = 15;  // CUDNN_TYPE_BACKEND_DESCRIPTOR: the engines on offer
  long given = 0;
  if (type == TYPE_DESCRIPTOR) {
    given = 1;
  } else if (type == TYPE_INT64 && elements != nullptr && requested > 0) {
    *static_cast<long*>(elements) = 0;
    given = 1;
  }
  if (number != nullptr) {
    *number = given;
  }
  return SUCCESS;
}

EXPORT int cudnnBackendExecute(void* handle, void*, void*) {
  return launch_on(handle, "cudnnBackendExecute");
}
