#pragma once

#include "inputs.h"

#include "ggml-backend.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

// What the programs have in common that run one text through one model and take values out of its graphs.

struct run_options {
    bool help    = false;
    bool verbose = false;

    std::string model;
    std::string file;
    std::string output;

    int32_t n_ctx     = 0;
    int32_t n_ubatch  = 512;
    int32_t n_threads = 0; // of the machine
};

// a whole number that only one of the programs takes
struct number_option {
    std::string name;
    int32_t *   value;
    int32_t     least;
};

// throws usage_error
void parse_run_options(int argc, char ** argv, run_options & opts, const std::vector<number_option> & more);

// Sees the nodes by which attention stores K and V and by which it reads K, as they are computed.
class graph_watcher {
public:
    virtual ~graph_watcher() = default;

    // ggml_backend_sched_eval_callback: asked whether a node is wanted, then given it
    static bool on_node(ggml_tensor * node, bool ask, void * user_data);

    // Feeds tokens [start, end) to a context, n_ubatch at a time, and prints a line after each batch.
    // throws std::runtime_error when the model cannot be run or a value cannot be taken
    void feed(llama_context * ctx, const std::vector<llama_token> & tokens, int32_t start, int32_t end, int32_t n_ubatch);

protected:
    virtual void begin_batch(int32_t start, int32_t n_tokens) = 0;

    // whether the nodes that store are wanted at all
    virtual bool wants_stored() const { return false; }

    // rows: [n_tokens][n_head_kv*head_dim], of layer il
    virtual void take_stored(int /* il */, bool /* is_k */, std::vector<float> /* rows */, int64_t /* n_tokens */) {}

    // attention: GGML_OP_FLASH_ATTN_EXT, which reads the keys of layer il
    virtual void take_queries(int il, const ggml_tensor * attention) = 0;

private:
    std::string failure;
};

// Values [n_values] of a float32 tensor that begin at each of the offsets; throws std::runtime_error for another type.
std::vector<float> read_rows(const ggml_tensor * tensor, int64_t n_values, const std::vector<size_t> & offsets);

// A context of one sequence that the watcher sees; flash attention is on, the operation whose operands are taken.
//   type: of K and V
// throws std::runtime_error when it cannot be made
llama_context_ptr watched_context(llama_model * model, const run_options & opts, int32_t n_ctx, int32_t n_ubatch, ggml_type type, graph_watcher & watcher);

// one JSON object
void print_line(const nlohmann::ordered_json & line);
