// Computes GGML_OP_FLASH_ATTN_EXT on the CPU for cases read from stdin, one after the other until the input ends.
//
// usage: llama-kv-attention-op < CASES > RESULTS
//        llama-kv-attention-op --bandwidth MIB THREADS      prints how fast the memory is read, in bytes per second
//        llama-kv-attention-op --rounding                   prints what the kernels of quantized types round to 16 bits:
//                                                           the query, and the weights of V
// exit:  0 done, 1 a case cannot be computed, 2 wrong arguments
//
// A case is op_case below, then, each contiguous, the innermost axis last:
//   Q     float  [n_stream][n_tokens][n_head][head_dim_k]
//   K     blocks [n_stream][n_rows][n_head_kv][head_dim_k]
//   V     blocks [n_stream][n_rows][n_head_kv][head_dim_v]; absent if v_in_k, V is then the head of each K row
//   mask  half   [mask_streams][mask_heads][n_tokens][n_kv]; absent if mask_heads is 0
//   sinks float  [n_head]; absent if has_sinks is 0
// A result is the seconds of the fastest run, a double, and the output, float [n_stream][n_tokens][n_head][head_dim_v].
// All numbers are in the byte order of this machine.

#include "ggml.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

struct op_case {
    int32_t k_type;        // ggml_type
    int32_t v_type;
    int32_t head_dim_k;
    int32_t head_dim_v;
    int32_t n_head;
    int32_t n_head_kv;
    int32_t n_tokens;      // query tokens
    int32_t n_kv;          // cache rows that the op sees
    int32_t n_rows;        // cache rows that a stream has; those past n_kv must not matter
    int32_t n_stream;
    int32_t v_in_k;
    int32_t mask_heads;    // 0: no mask, else 1 or n_head
    int32_t mask_streams;
    int32_t has_sinks;
    int32_t n_threads;
    int32_t n_runs;
    float   scale;
    float   max_bias;
    float   softcap;
};

// No larger than asked, so that a tool that watches memory sees a read or write past its end.
struct buffer {
    std::unique_ptr<char[]> data;
    size_t                  size;

    explicit buffer(size_t size) : data(new char[size]), size(size) {}
};

static bool read_exactly(void * data, size_t size) {
    return fread(data, 1, size, stdin) == size;
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The tensors of a case and the memory behind them.
class op_graph {
  public:
    explicit op_graph(const op_case & c)
        : ctx(ggml_init({ ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, /*no_alloc =*/ true }), ggml_free) {
        ggml_tensor * q = input(GGML_TYPE_F32, c.head_dim_k, c.n_head, c.n_tokens, c.n_stream);
        ggml_tensor * k = input((ggml_type) c.k_type, c.head_dim_k, c.n_head_kv, c.n_rows, c.n_stream);
        ggml_tensor * v = c.v_in_k ? k : input((ggml_type) c.v_type, c.head_dim_v, c.n_head_kv, c.n_rows, c.n_stream);
        ggml_tensor * mask = c.mask_heads ? input(GGML_TYPE_F16, c.n_kv, c.n_tokens, c.mask_heads, c.mask_streams) : nullptr;
        ggml_tensor * sinks = c.has_sinks ? input(GGML_TYPE_F32, c.n_head, 1, 1, 1) : nullptr;

        // the views that llama.cpp makes of its cache
        const auto rows = [&](ggml_tensor * x, int64_t width) {
            return ggml_permute(ctx.get(), ggml_view_4d(ctx.get(), x, width, c.n_head_kv, c.n_kv, c.n_stream, x->nb[1], x->nb[2], x->nb[3], 0), 0, 2, 1, 3);
        };
        ggml_tensor * k_rows = rows(k, c.head_dim_k);
        ggml_tensor * v_rows = rows(v, c.head_dim_v);
        out = ggml_flash_attn_ext(ctx.get(), ggml_permute(ctx.get(), q, 0, 2, 1, 3), k_rows, v_rows, mask, c.scale, c.max_bias, c.softcap);
        ggml_flash_attn_ext_add_sinks(out, sinks);
        memory.emplace_back(ggml_nbytes(out));
        out->data = memory.back().data.get();

        graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
    }

    // seconds, or a negative number when ggml fails
    double run(ggml_threadpool * pool, int n_threads) {
        ggml_cplan plan = ggml_graph_plan(graph, n_threads, pool);
        buffer work(plan.work_size);
        plan.work_data = (uint8_t *) work.data.get();
        // what is not computed shows: all bits set is not a number
        memset(work.data.get(), 0xff, work.size);
        memset(out->data, 0xff, ggml_nbytes(out));

        const double start = now();
        const bool   done  = ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS;
        return done ? now() - start : -1.0;
    }

    const ggml_tensor * result() const { return out; }

    bool complete() const { return all_read; }

  private:
    // a tensor of this shape, read from stdin
    ggml_tensor * input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3) {
        ggml_tensor * x = ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);
        memory.emplace_back(ggml_nbytes(x));
        x->data  = memory.back().data.get();
        all_read = all_read && read_exactly(x->data, memory.back().size);
        return x;
    }

    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx;

    std::vector<buffer> memory;
    ggml_tensor       * out;
    ggml_cgraph       * graph;
    bool                all_read = true;
};

static int compute_cases() {
    ggml_cpu_init();
    for (op_case c; read_exactly(&c, sizeof(c));) {
        op_graph graph(c);
        if (!graph.complete()) {
            fprintf(stderr, "llama-kv-attention-op: error: the input ends in the middle of a case\n");
            return 1;
        }

        ggml_threadpool_params params = ggml_threadpool_params_default(c.n_threads);
        std::unique_ptr<ggml_threadpool, decltype(&ggml_threadpool_free)> pool(ggml_threadpool_new(&params), ggml_threadpool_free);
        double fastest = std::numeric_limits<double>::infinity();
        for (int i = 0; i < c.n_runs; ++i) {
            const double seconds = graph.run(pool.get(), c.n_threads);
            if (seconds < 0.0) {
                fprintf(stderr, "llama-kv-attention-op: error: ggml could not compute a case\n");
                return 1;
            }
            fastest = std::min(fastest, seconds);
        }
        fwrite(&fastest, sizeof(fastest), 1, stdout);
        fwrite(graph.result()->data, 1, ggml_nbytes(graph.result()), stdout);
        fflush(stdout);
    }
    return 0;
}

static uint64_t sum_words(const uint64_t * words, size_t n) {
    uint64_t sum[8] = {};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; ++j) {
            sum[j] += words[i + j];
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

// Reads a buffer with n_threads, eight times; the fastest pass counts.
static int print_bandwidth(size_t n_bytes, int n_threads) {
    constexpr int N_PASSES = 8;

    const size_t n = n_bytes / sizeof(uint64_t) / n_threads;
    std::vector<std::vector<uint64_t>> parts(n_threads);
    std::vector<uint64_t>              sums(n_threads);
    for (auto & part : parts) {
        part.assign(n, 1);
    }
    double fastest = std::numeric_limits<double>::infinity();
    for (int pass = 0; pass < N_PASSES; ++pass) {
        std::vector<std::thread> threads;
        const double start = now();
        for (int i = 0; i < n_threads; ++i) {
            threads.emplace_back([&, i] { sums[i] = sum_words(parts[i].data(), n); });
        }
        for (auto & thread : threads) {
            thread.join();
        }
        fastest = std::min(fastest, now() - start);
    }
    for (const uint64_t sum : sums) {
        if (sum != n / 8 * 8) {
            return 1;
        }
    }
    printf("%.0f\n", n * sizeof(uint64_t) * n_threads / fastest);
    return 0;
}

static const char * rounding() {
    const bool has_tiles = ggml_cpu_has_avx2() ? ggml_cpu_has_f16c() && ggml_cpu_has_fma() && !ggml_cpu_has_avx512() : ggml_cpu_has_dotprod();
    return has_tiles ? "query weights" : "";
}

int main(int argc, char ** argv) {
    if (argc == 1) {
        return compute_cases();
    }
    if (argc == 2 && strcmp(argv[1], "--rounding") == 0) {
        printf("%s\n", rounding());
        return 0;
    }
    if (argc == 4 && strcmp(argv[1], "--bandwidth") == 0) {
        const int mib       = atoi(argv[2]);
        const int n_threads = atoi(argv[3]);
        if (mib > 0 && n_threads > 0) {
            return print_bandwidth((size_t) mib << 20, n_threads);
        }
    }
    fprintf(stderr, "usage: %s < CASES > RESULTS\n       %s --bandwidth MIB THREADS\n       %s --rounding\n", argv[0], argv[0], argv[0]);
    return 2;
}
