/* The words of CUDA's headers that a C compiler does not know. CUDA has this file as
   crt/host_defines.h, which comes with its compiler and in no wheel of the runtime. */
#pragma once

#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __no_return__ __attribute__((noreturn))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __align__(bytes)
#define __annotate__(what) __attribute__((what))
#define __location__(what) __annotate__(what)
#define CUDARTAPI
