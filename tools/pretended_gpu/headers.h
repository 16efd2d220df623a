/* All that the pretended library stands for. Every function that is declared here and written in
   no .c file is there all the same: it does nothing and says that all went well (building.py). */
#pragma once

#include <cuda_runtime_api.h>

#include <cuda.h>

#include <cublas_v2.h>

#include <cublasLt.h>

/* Of a header that comes in no wheel of the runtime. */
cudaError_t cudaProfilerStart(void);
cudaError_t cudaProfilerStop(void);

/* What CUDA's compiler makes a program call before it begins, and for each launch. */
void **__cudaRegisterFatBinary(void *binary);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int threads, void *thread, void *block, void *blocks, void *grid,
                            int *warp);
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external,
                       size_t size, int constant, int global);
char __cudaInitModule(void **handle);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream);
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream);
