/* CUDA's runtime without a device: memory is the host's, and a launch is counted. */
#define _GNU_SOURCE
#include "headers.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "counts.h"

/* The headers give some names a version of an argument list that the library does not have. */
#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo
#undef cudaEventElapsedTime
#undef cudaGetDriverEntryPointByVersion
#undef cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags

#define VERSION 13000
#define GIBIBYTE ((size_t)1 << 30)
#define PAGE ((size_t)2 << 20) /* what torch's allocator expects blocks to begin at */

long pretended_counts[KINDS];

/* ---- The device: the figures of an H100, which decide what torch and Triton choose. */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

cudaError_t cudaDriverGetVersion(int *version) {
  *version = VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
  memset(of, 0, sizeof *of);
  strcpy(of->name, "pretended H100");
  of->major = 9;
  of->multiProcessorCount = 132;
  of->totalGlobalMem = 80 * GIBIBYTE;
  of->warpSize = 32;
  of->maxThreadsPerBlock = 1024;
  of->maxThreadsPerMultiProcessor = 2048;
  of->maxBlocksPerMultiProcessor = 32;
  of->maxThreadsDim[0] = of->maxThreadsDim[1] = 1024;
  of->maxThreadsDim[2] = 64;
  of->maxGridSize[0] = 2147483647;
  of->maxGridSize[1] = of->maxGridSize[2] = 65535;
  of->sharedMemPerBlock = 49152;
  of->sharedMemPerBlockOptin = 232448;
  of->sharedMemPerMultiprocessor = 233472;
  of->regsPerBlock = of->regsPerMultiprocessor = 65536;
  of->l2CacheSize = 50 << 20;
  of->totalConstMem = 65536;
  of->memoryBusWidth = 5120;
  of->textureAlignment = 512;
  of->texturePitchAlignment = 32;
  of->unifiedAddressing = of->canMapHostMemory = of->concurrentKernels = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device) {
  struct cudaDeviceProp of;
  cudaGetDeviceProperties(&of, device);
  switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = of.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = of.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = of.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)of.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)of.sharedMemPerBlockOptin; break;
    case cudaDevAttrWarpSize: *value = of.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = of.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = of.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = of.regsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = of.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = of.maxGridSize[1]; break;
    default: *value = 1; /* mostly questions whether it can do something */
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  snprintf(text, length, "0000:00:00.0");
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = 79 * GIBIBYTE;
  *total = 80 * GIBIBYTE;
  return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported"
         : error ? "cudaError" : "cudaSuccess";
}

const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorStreamCaptureUnsupported
             ? "operation not permitted when stream is capturing"
         : error ? "an error of the pretended GPU" : "no error";
}

/* ---- Capture of graphs, of one at a time. A graph is the number of its nodes. */

static cudaStream_t captured; /* the stream that is being captured, 0 where none is */
static long before_capture;

static enum cudaStreamCaptureStatus status_of(cudaStream_t stream) {
  int now = captured && stream == captured;
  return now ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = status_of(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *number) {
  *status = status_of(stream);
  if (id) *id = 1;
  if (graph) *graph = (cudaGraph_t)1;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (number) *number = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (captured) return cudaErrorStreamCaptureUnsupported;
  captured = stream;
  before_capture = pretended_counts[LAUNCHES];
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  captured = 0;
  *graph = (cudaGraph_t)(pretended_counts[LAUNCHES] - before_capture + 1);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
  *number = (size_t)graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
                                          unsigned long long flags) {
  *made = (cudaGraphExec_t)graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  count(GRAPH_LAUNCHES);
  return cudaSuccess;
}

/* ---- Waits of the host. CUDA refuses them while a graph is captured. */

static cudaError_t waited(void) {
  if (captured) return cudaErrorStreamCaptureUnsupported;
  count(WAITS);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) { return waited(); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited(); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited(); }

/* ---- Memory. What is pinned is remembered, since torch asks of an address which kind it is. */

struct Pinned {
  char *begin;
  size_t size;
  struct Pinned *next;
};
static struct Pinned *all_pinned;
static pthread_mutex_t pinned_lock = PTHREAD_MUTEX_INITIALIZER;

cudaError_t cudaMalloc(void **memory, size_t size) {
  *memory = aligned_alloc(PAGE, (size + PAGE - 1) / PAGE * PAGE);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *memory) {
  free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **memory, size_t size, cudaStream_t stream) {
  return cudaMalloc(memory, size);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) { return cudaFree(memory); }

cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags) {
  struct Pinned *pinned = malloc(sizeof *pinned);
  if (!pinned || cudaMalloc(memory, size) != cudaSuccess) {
    free(pinned);
    return cudaErrorMemoryAllocation;
  }
  pthread_mutex_lock(&pinned_lock);
  *pinned = (struct Pinned){*memory, size, all_pinned};
  all_pinned = pinned;
  pthread_mutex_unlock(&pinned_lock);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
  pthread_mutex_lock(&pinned_lock);
  for (struct Pinned **at = &all_pinned; *at; at = &(*at)->next)
    if ((*at)->begin == memory) {
      struct Pinned *gone = *at;
      *at = gone->next;
      free(gone);
      break;
    }
  pthread_mutex_unlock(&pinned_lock);
  return cudaFree(memory);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeUnregistered;
  found->device = -1;
  pthread_mutex_lock(&pinned_lock);
  for (struct Pinned *at = all_pinned; at; at = at->next)
    if ((char *)pointer >= at->begin && (char *)pointer < at->begin + at->size) {
      found->type = cudaMemoryTypeHost;
      found->device = 0;
      found->hostPointer = found->devicePointer = (void *)pointer;
    }
  pthread_mutex_unlock(&pinned_lock);
  return cudaSuccess;
}

static void count_copy(enum cudaMemcpyKind kind) {
  count(kind == cudaMemcpyHostToDevice   ? TO_DEVICE
        : kind == cudaMemcpyDeviceToHost ? FROM_DEVICE : INSIDE_DEVICE);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  count_copy(kind);
  memmove(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  cudaError_t error = kind == cudaMemcpyDeviceToDevice ? cudaSuccess : waited();
  return error ? error : cudaMemcpyAsync(to, from, size, kind, 0);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
  count_copy(kind);
  for (size_t row = 0; row < height; row++)
    memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream) {
  count(FILLS);
  memset(memory, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t size) {
  return cudaMemsetAsync(memory, value, size, 0);
}

cudaError_t cudaGetSymbolAddress(void **found, const void *symbol) {
  static char somewhere[1 << 20];
  *found = somewhere;
  return cudaSuccess;
}

/* ---- Streams have no order: all has happened when a call returns. Events know when that was. */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  static long last = 0x1000;
  *stream = (cudaStream_t)__atomic_add_fetch(&last, 16, __ATOMIC_RELAXED);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = calloc(1, sizeof(struct timespec));
  return *event ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  struct timespec *a = (struct timespec *)begin, *b = (struct timespec *)end;
  *milliseconds = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f;
  return cudaSuccess;
}

/* ---- Kernels. */

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  return handle;
}

static __thread struct {
  dim3 grid, block;
  size_t shared;
  struct CUstream_st *stream;
} next;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  next.grid = grid;
  next.block = block;
  next.shared = shared;
  next.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = next.grid;
  *block = next.block;
  *shared = next.shared;
  *(struct CUstream_st **)stream = next.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}

static cudaError_t launched(void) {
  count(LAUNCHES);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) {
  return launched();
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
  return launched();
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function,
                                void **arguments) {
  return launched();
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *of, const void *function) {
  memset(of, 0, sizeof *of);
  of->maxThreadsPerBlock = 1024;
  of->numRegs = 32;
  of->ptxVersion = of->binaryVersion = 90;
  of->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                          int threads, size_t shared) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

static int nothing(void) { return 0; }

/* torch finds the driver by this. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found) *found = (void *)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
