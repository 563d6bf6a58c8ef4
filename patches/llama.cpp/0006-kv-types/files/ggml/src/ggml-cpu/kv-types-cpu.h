#pragma once

// What the CPU backend does with the cache types of kv-types.h.

#include "ggml.h"
#include "ggml-cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

const struct ggml_type_traits_cpu * ggml_kv_type_traits_cpu(enum ggml_type type);

#ifdef __cplusplus
}
#endif
