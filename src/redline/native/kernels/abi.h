/* The C interface of a compiled model. One shared object holds one model; its weights lie in a
 * file beside it, packed in the order that the kernels read them. Nothing here allocates but
 * redline_open, and nothing throws. A context serves one call at a time. */
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#define REDLINE_ABI 1
#define REDLINE_API __attribute__((visibility("default")))

/* JSON: {"abi", "isa": [CPU flags], "threads", "inputs": [{"dtype", "shape"}], "outputs": the same,
 * "workspace": bytes, "weights": bytes, "groups": [{"name", "kernel", "flops", "bytes"}],
 * "missed": [refused fusions with their reasons]}
 * Where sizes are free also "sizes": [{"name", "min", "max"}]; a free axis of an input is such a
 * name, and a number that depends on sizes is a list of [factor, exponent of each size]. */
REDLINE_API const char* redline_describe(void);
/* A context with its own workspace and threads; the weights (64-byte aligned) must outlive it.
 * NULL where memory or a thread cannot be had. */
REDLINE_API void* redline_open(const void* weights);
/* The free sizes of the calls that follow, in the order of describe(), each within its bounds. */
REDLINE_API void redline_sizes(void* context, const long* sizes);
/* Contiguous arrays in, contiguous arrays out, in the order of describe(). 0 is success. */
REDLINE_API int redline_run(void* context, const void* const* inputs, void* const* outputs);
/* Nanoseconds of each group in the last call after redline_profile(context, 1). */
REDLINE_API void redline_profile(void* context, int on);
REDLINE_API const uint64_t* redline_times(void* context);
REDLINE_API void redline_close(void* context);
#ifdef __cplusplus
}
#endif
