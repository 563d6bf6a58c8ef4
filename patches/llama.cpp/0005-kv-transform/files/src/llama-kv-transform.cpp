#include "llama-kv-transform.h"

#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-layers.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

static const uint32_t LLAMA_KV_TRANSFORM_VERSION = 1;

//
// the file
//

namespace {

// Headers first: nothing is allocated or read because of a size that only the file claims.
class transform_file {
public:
    explicit transform_file(const std::string & path) : path(path), file(ggml_fopen(path.c_str(), "rb"), close) {
        char magic[4] = {};
        if (!file || fread(magic, 1, sizeof(magic), file.get()) != sizeof(magic) || memcmp(magic, GGUF_MAGIC, sizeof(magic)) != 0) {
            fail(file ? "is no GGUF file" : "cannot be opened");
        }

        ggml_context * ctx = nullptr;
        gguf.reset(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ &ctx }));
        meta.reset(ctx);
        if (!gguf) {
            fail("is a damaged GGUF file");
        }
    }

    [[noreturn]] void fail(const std::string & what) const {
        throw std::runtime_error("--kv-transform: " + path + ": " + what);
    }

    std::string text(const char * name) const {
        return gguf_get_val_str(gguf.get(), key(name, GGUF_TYPE_STRING));
    }

    uint32_t u32(const char * name) const {
        return gguf_get_val_u32(gguf.get(), key(name, GGUF_TYPE_UINT32));
    }

    uint64_t u64(const char * name) const {
        return gguf_get_val_u64(gguf.get(), key(name, GGUF_TYPE_UINT64));
    }

    // The values of a tensor as f32; empty when there is none.
    //   shapes: what it may be, [ne0, ne1, ne2]
    std::vector<float> values(const std::string & name, const std::vector<std::vector<int64_t>> & shapes) {
        known.insert(name);

        const ggml_tensor * tensor = ggml_get_tensor(meta.get(), name.c_str());
        if (!tensor) {
            return {};
        }
        const bool fits = std::any_of(shapes.begin(), shapes.end(), [&](const std::vector<int64_t> & ne) {
            return std::equal(ne.begin(), ne.end(), tensor->ne) && tensor->ne[3] == 1;
        });
        if (!fits) {
            fail(name + " has another shape than this model's keys, it was made for another model");
        }
        if (tensor->type != GGML_TYPE_F16 && tensor->type != GGML_TYPE_F32) {
            fail(name + " is neither f16 nor f32");
        }

        std::vector<char> bytes(ggml_nbytes(tensor));
        const size_t offset = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), gguf_find_tensor(gguf.get(), name.c_str()));
        if (fseek(file.get(), (long) offset, SEEK_SET) != 0 || fread(bytes.data(), 1, bytes.size(), file.get()) != bytes.size()) {
            fail("is cut short");
        }

        std::vector<float> res(ggml_nelements(tensor));
        if (tensor->type == GGML_TYPE_F16) {
            ggml_fp16_to_fp32_row((const ggml_fp16_t *) bytes.data(), res.data(), res.size());
        } else {
            memcpy(res.data(), bytes.data(), bytes.size());
        }
        if (!std::all_of(res.begin(), res.end(), [](float x) { return std::isfinite(x); })) {
            fail(name + " holds NaN or infinity");
        }
        return res;
    }

    // a tensor that nothing here reads would be ignored in silence
    void check_all_known() const {
        for (ggml_tensor * t = ggml_get_first_tensor(meta.get()); t; t = ggml_get_next_tensor(meta.get(), t)) {
            const std::string name = t->name;
            const size_t      dot  = name.rfind('.');
            const bool        note = dot != std::string::npos && name.substr(dot) == ".gain_db"; // what the fit expected
            if (!note && known.count(name) == 0) {
                fail("holds " + name + ", which this model or this program has no use for");
            }
        }
    }

private:
    static void close(FILE * file) {
        if (file) {
            fclose(file);
        }
    }

    std::string path;

    std::unique_ptr<FILE, void (*)(FILE *)> file;

    gguf_context_ptr gguf;
    ggml_context_ptr meta;

    std::set<std::string> known;

    int64_t key(const char * name, gguf_type type) const {
        const int64_t id = gguf_find_key(gguf.get(), name);
        if (id < 0 || gguf_get_kv_type(gguf.get(), id) != type) {
            fail(std::string("has no ") + name + ", kvquant calibrate writes it");
        }
        return id;
    }
};

// The numbers of one layer, and what is wrong with them.
struct layer_numbers {
    int64_t d;
    int64_t n_head_kv;

    std::vector<float> centre, forward, query;

    bool is_diagonal() const {
        return (int64_t) forward.size() == d*n_head_kv;
    }

    // M^T (M^-T x) is x, for one x of each head: 1, -1/2, 1/3, ...
    // A matrix is f16 and has a condition number of 1e4 at most, its inverse is f32.
    bool is_inverse() const {
        const auto x = [](int64_t i) { return (i % 2 ? -1.0 : 1.0)/(i + 1); };

        for (int64_t h = 0; h < n_head_kv && !forward.empty(); ++h) {
            const float * m = forward.data() + h*(is_diagonal() ? d : d*d);
            const float * q = query.data()   + h*(is_diagonal() ? d : d*d);

            std::vector<double> once(d), twice(d);
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = is_diagonal() ? i : 0; j < (is_diagonal() ? i + 1 : d); ++j) {
                    once[i] += (double) q[is_diagonal() ? i : i*d + j]*x(j);
                }
            }
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = is_diagonal() ? i : 0; j < (is_diagonal() ? i + 1 : d); ++j) {
                    twice[j] += (double) m[is_diagonal() ? i : i*d + j]*once[i];
                }
            }
            for (int64_t i = 0; i < d; ++i) {
                if (!(std::fabs(twice[i] - x(i)) <= 1e-2)) {
                    return false;
                }
            }
        }
        return true;
    }

    uint64_t digest() const {
        uint64_t hash = 14695981039346656037u; // FNV-1a

        for (const auto * values : { &centre, &forward, &query }) {
            for (size_t i = 0; i < values->size()*sizeof(float); ++i) {
                hash = (hash ^ ((const uint8_t *) values->data())[i])*1099511628211u;
            }
        }
        return hash;
    }
};

} // namespace

// A file's transforms, and the memory of their tensors.
struct llama_kv_transform {
    std::string path;

    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;

    std::map<uint32_t, llama_kv_layer_transform> layers;
    std::set<uint32_t>                           taken;
};

static std::vector<float> transposed(const std::vector<float> & matrices, int64_t d) {
    std::vector<float> res(matrices.size());
    for (int64_t row = 0; row < (int64_t) matrices.size()/d; ++row) {
        for (int64_t j = 0; j < d; ++j) {
            res[(row/d*d + j)*d + row % d] = matrices[row*d + j];
        }
    }

    return res;
}

static void check_model(const transform_file & file, const llama_model & model, uint32_t n_layer) {
    if (file.text("general.architecture") != "kv-transform") {
        file.fail("is a GGUF file of something else, kvquant calibrate writes a transform");
    }
    if (file.u32("kv-transform.version") != LLAMA_KV_TRANSFORM_VERSION) {
        file.fail("has version " + std::to_string(file.u32("kv-transform.version")) + ", this program reads version " +
                std::to_string(LLAMA_KV_TRANSFORM_VERSION));
    }
    if (file.text("kv-transform.model_arch") != llm_arch_name(model.arch) || file.u32("kv-transform.n_layer") != n_layer) {
        file.fail("was made for another model, a " + file.text("kv-transform.model_arch") + " of " +
                std::to_string(file.u32("kv-transform.n_layer")) + " layers");
    }
    if (file.u64("kv-transform.model_bytes") != llama_model_size(&model)) {
        file.fail("was made for another file of this kind of model, with " + std::to_string(file.u64("kv-transform.model_bytes")) +
                " bytes of weights and not " + std::to_string(llama_model_size(&model)));
    }
}

static std::unique_ptr<llama_kv_transform> load(const std::string & path, const llama_model & model, uint32_t n_layer, bool offload) {
    const auto & hparams = model.hparams;

    transform_file file(path);
    check_model(file, model, n_layer);

    auto res = std::make_unique<llama_kv_transform>();
    res->path = path;

    // tensors lie where the layer's cache lies
    std::map<ggml_backend_buffer_type_t, ggml_context *>     ctx_of;
    std::vector<std::pair<ggml_tensor *, std::vector<float>>> contents;

    const auto add = [&](uint32_t il, const char * name, std::vector<float> values, const std::vector<int64_t> & ne) {
        ggml_backend_buffer_type_t buft = offload ? ggml_backend_dev_buffer_type(model.dev_layer(il)) : ggml_backend_cpu_buffer_type();
        if (!ctx_of[buft]) {
            res->ctxs.emplace_back(ggml_init({ /*.mem_size =*/ ggml_tensor_overhead()*4*n_layer, /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true }));
            ctx_of[buft] = res->ctxs.back().get();
        }
        ggml_tensor * tensor = ggml_new_tensor(ctx_of[buft], GGML_TYPE_F32, (int) ne.size(), ne.data());
        ggml_format_name(tensor, "kv_transform_%s_l%u", name, il);
        contents.emplace_back(tensor, std::move(values));
        return tensor;
    };

    for (uint32_t il = 0; il < n_layer; ++il) {
        const int64_t d         = hparams.n_embd_head_k(il);
        const int64_t n_head    = hparams.n_head(il);
        const int64_t n_head_kv = hparams.n_head_kv(il);

        const std::string prefix = "layer." + std::to_string(il) + ".";

        const std::vector<int64_t> vectors = { d, n_head_kv, 1 }, matrices = { d, d, n_head_kv };

        layer_numbers numbers = { d, n_head_kv, file.values(prefix + "centre", { vectors }), {}, {} };
        if (numbers.centre.empty()) {
            continue;
        }
        numbers.forward = file.values(prefix + "forward", { vectors, matrices });
        numbers.query   = file.values(prefix + "query",   { vectors, matrices });
        if (numbers.forward.size() != numbers.query.size() || !numbers.is_inverse()) {
            file.fail(prefix + "query is not the inverse of " + prefix + "forward");
        }

        auto & layer = res->layers[il];

        layer.il      = il;
        layer.digest  = numbers.digest();
        layer.centred = std::any_of(numbers.centre.begin(), numbers.centre.end(), [](float x) { return x != 0.0f; });
        if (layer.centred && (hparams.attn_soft_cap || model.arch == LLM_ARCH_GROK)) {
            file.fail("centres layer " + std::to_string(il) + ", but this model caps its logits, which then see the centre; "
                    "calibrate with a kind that does not centre");
        }

        layer.centre = add(il, "centre", std::move(numbers.centre), { d, n_head_kv });
        if (numbers.forward.empty()) {
            continue;
        }
        layer.diagonal = numbers.is_diagonal();
        if (layer.diagonal) {
            // one factor for each query head, which saves reshaping the queries
            std::vector<float> of_heads(d*n_head);
            for (int64_t h = 0; h < n_head; ++h) {
                std::copy_n(numbers.query.data() + h/(n_head/n_head_kv)*d, d, of_heads.data() + h*d);
            }
            layer.query   = add(il, "query",   std::move(of_heads),        { d, n_head });
            layer.inverse = add(il, "inverse", std::move(numbers.query),   { d, n_head_kv });
            layer.forward = add(il, "forward", std::move(numbers.forward), { d, n_head_kv });
        } else {
            layer.inverse = add(il, "inverse", transposed(numbers.query, d), { d, d, n_head_kv });
            layer.query   = add(il, "query",   std::move(numbers.query),     { d, d, n_head_kv });
            layer.forward = add(il, "forward", std::move(numbers.forward),   { d, d, n_head_kv });
        }
    }
    file.check_all_known();

    size_t n_bytes = 0;
    for (const auto & [buft, ctx] : ctx_of) {
        res->bufs.emplace_back(ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft));
        if (!res->bufs.back()) {
            file.fail("does not fit into memory");
        }
        ggml_backend_buffer_set_usage(res->bufs.back().get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        n_bytes += ggml_backend_buffer_get_size(res->bufs.back().get());
    }
    for (const auto & [tensor, values] : contents) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }

    LLAMA_LOG_INFO("llama_context: kv_transform          = %s (%zu layers, %.2f MiB, digest %.16s)\n", path.c_str(),
            res->layers.size(), n_bytes/1024.0/1024.0, file.text("kv-transform.digest").c_str());

    return res;
}

//
// from the parameters to the caches
//

// what the context whose memory this thread is making was given; null for none
static thread_local std::shared_ptr<llama_kv_transform> current_transform;

llama_kv_transform_scope::llama_kv_transform_scope(
        const llama_model & model, const llama_context_params & params, uint32_t n_layer, bool special) {
    if (!params.kv_transform) {
        return;
    }

    const auto & hparams = model.hparams;

    const char * refused =
        special                                       ? "an MTP context reads the keys of another context" :
        hparams.is_mla() || hparams.n_lora_kv > 0     ? "MLA models keep compressed keys, which are values as well" :
        strcmp(llm_arch_name(model.arch), "dflash") == 0 ? "dflash models store keys in a way of their own" : nullptr;
    if (refused) {
        throw std::runtime_error(std::string("--kv-transform is not supported here: ") + refused);
    }

    current_transform = load(params.kv_transform, model, n_layer, params.offload_kqv);
}

llama_kv_transform_scope::~llama_kv_transform_scope() {
    current_transform.reset();
}

void llama_kv_transform_scope::settle(bool keeps_keys, bool takes) const {
    if (!current_transform) {
        return;
    }
    if (!keeps_keys) {
        LLAMA_LOG_WARN("--kv-transform: %s has no effect, the model keeps no KV cache\n", current_transform->path.c_str());
        return;
    }
    if (!takes) {
        throw std::runtime_error("--kv-transform is not supported here: this model keeps an indexer or compressed key cache beside "
                "its K and V");
    }
    for (const auto & [il, layer] : current_transform->layers) {
        if (current_transform->taken.count(il) == 0) {
            throw std::runtime_error("--kv-transform: " + current_transform->path + ": names layer " + std::to_string(il) +
                    ", which keeps no keys here");
        }
    }
}

llama_kv_layer_transform_ptr llama_kv_transform_take(uint32_t il) {
    if (!current_transform) {
        return nullptr;
    }

    const auto layer = current_transform->layers.find(il);
    if (layer == current_transform->layers.end()) {
        return nullptr;
    }
    current_transform->taken.insert(il);

    // the cache keeps the tensors of all layers
    return { current_transform, &layer->second };
}

//
// graphs
//

// the matrix of each KV head times the vectors of x [n_embd_head_k, n_head, n_tokens], query heads by their group
static ggml_tensor * times(ggml_context * ctx, ggml_tensor * matrix, bool diagonal, ggml_tensor * x) {
    if (!matrix) {
        return x;
    }
    if (diagonal) {
        return ggml_mul(ctx, x, matrix);
    }

    ggml_tensor * res = ggml_mul_mat(ctx, matrix, ggml_permute(ctx, x, 0, 2, 1, 3));

    return ggml_cont(ctx, ggml_permute(ctx, res, 0, 2, 1, 3));
}

ggml_tensor * llama_kv_layer_transform::apply_q(ggml_context * ctx, ggml_tensor * q) const {
    return times(ctx, query, diagonal, q);
}

ggml_tensor * llama_kv_layer_transform::apply_k(ggml_context * ctx, ggml_tensor * k) const {
    return times(ctx, forward, diagonal, centred ? ggml_sub(ctx, k, centre) : k);
}

ggml_tensor * llama_kv_layer_transform::undo_k(ggml_context * ctx, ggml_tensor * k) const {
    ggml_tensor * res = times(ctx, inverse, diagonal, k);

    return centred ? ggml_add(ctx, res, centre) : res;
}

void llama_kv_layer_transform::apply(ggml_context * ctx, const ggml_tensor * sinks, ggml_tensor * & q, ggml_tensor * & k) const {
    if (sinks && centred) {
        throw std::runtime_error("--kv-transform centres layer " + std::to_string(il) + ", but this model has attention sinks, "
                "which then see the centre; calibrate with a kind that does not centre");
    }

    q = apply_q(ctx, q);
    if (k) {
        k = apply_k(ctx, k);
    }
    asked = true;
}

void llama_kv_transform_check_asked(const llama_kv_layer_transform * transform) {
    if (transform && !std::exchange(transform->asked, false)) {
        throw std::runtime_error("--kv-transform: this model computes the attention of layer " + std::to_string(transform->il) +
                " in a way of its own, which cannot be transformed");
    }
}

//
// state files
//

int32_t llama_kv_transform_state_mark(const llama_kv_layer_transform * transform) {
    return transform ? LLAMA_KV_STATE_TRANSFORMED : 0;
}

void llama_kv_transform_state_write(llama_io_write_i & io, const llama_kv_layer_transform * transform) {
    if (transform) {
        io.write(&transform->digest, sizeof(transform->digest));
    }
}

bool llama_kv_transform_state_read(llama_io_read_i & io, const llama_kv_layer_transform * transform) {
    if (!transform) {
        return true;
    }

    uint64_t digest;
    io.read(&digest, sizeof(digest));
    if (digest != transform->digest) {
        llama_kv_refuse("%s: mismatched transform of keys: layer %u was saved under another --kv-transform; restore it under "
                "that one\n", __func__, transform->il);
        return false;
    }

    return true;
}
