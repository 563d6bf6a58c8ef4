// Runs every architecture that upstream's tests/test-llama-archs.cpp can make a small random model of, with a random exact
// change of K over a float32 cache:
//
//   - factors that are powers of two leave every logit as it is, bit for bit: in one go, after a context shift, in a copied
//     sequence, and after a save and restore
//   - with matrices, and with a centre, the logits are those without it but for float32 rounding, in all these cases; the
//     error is printed, and behind it that of inverses that are off by half a percent
//   - or the context is refused, because the model cannot have such a change; where only centring is refused, it works
//     without a centre
//
// usage: llama-kv-transform-archs [ARCH]
// exit:  0 all hold, 1 some do not

#include "../kv-layers-test/archs.h"

#include "../../src/llama-model.h"

#include <filesystem>
#include <set>

// attention must not be even, or nothing would be seen
static const random_weights WEIGHTS = { /*.stdev =*/ 0.2f, /*.norm =*/ 1.0f };

static const double EXACT = 1e-6; // normalised error of the logits that float32 rounding may make: gemma3n amplifies it

static const int N_TOKENS = 128;
static const int N_BEFORE = 96; // tokens before something happens to the cache
static const int N_SHIFT  = 16;

enum class kind { powers, matrix }; // a diagonal of powers of two, or a full matrix

// What a file is made of.
struct recipe {
    kind kind_of;
    bool centred;
    bool broken = false; // inverses are off by half a percent

    std::set<uint32_t> left_out; // layers
};

// the transposed inverse of m [d][d], by elimination with pivots
static std::vector<double> transposed_inverse(std::vector<double> m, int64_t d) {
    std::vector<double> inverse(d*d, 0.0);
    for (int64_t i = 0; i < d; ++i) {
        inverse[i*d + i] = 1.0;
    }
    for (int64_t col = 0; col < d; ++col) {
        int64_t pivot = col;
        for (int64_t row = col; row < d; ++row) {
            pivot = std::fabs(m[row*d + col]) > std::fabs(m[pivot*d + col]) ? row : pivot;
        }
        for (int64_t j = 0; j < d; ++j) {
            std::swap(m      [pivot*d + j], m      [col*d + j]);
            std::swap(inverse[pivot*d + j], inverse[col*d + j]);
        }
        const double scale = 1.0/m[col*d + col];
        for (int64_t j = 0; j < d; ++j) {
            m      [col*d + j] *= scale;
            inverse[col*d + j] *= scale;
        }
        for (int64_t row = 0; row < d; ++row) {
            const double factor = row == col ? 0.0 : m[row*d + col];
            for (int64_t j = 0; j < d; ++j) {
                m      [row*d + j] -= factor*m      [col*d + j];
                inverse[row*d + j] -= factor*inverse[col*d + j];
            }
        }
    }

    std::vector<double> res(d*d);
    for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j < d; ++j) {
            res[j*d + i] = inverse[i*d + j];
        }
    }
    return res;
}

// newer trees count the layers of extra heads apart
template <typename hparams_t>
static auto layers_of(const hparams_t & hparams, int) -> decltype(uint32_t(hparams.n_layer_all)) { return hparams.n_layer_all; }
template <typename hparams_t>
static uint32_t layers_of(const hparams_t & hparams, long) { return hparams.n_layer; }

static void write_transform(const std::string & path, const llama_model & model, const recipe & how) {
    const auto & hparams = model.hparams;

    std::mt19937 gen(SEED);
    std::normal_distribution<double> dis;

    ggml_context_ptr ctx(ggml_init({ /*.mem_size =*/ 256u*1024*1024, /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ false }));
    gguf_context_ptr gguf(gguf_init_empty());

    gguf_set_val_str(gguf.get(), "general.architecture",     "kv-transform");
    gguf_set_val_u32(gguf.get(), "kv-transform.version",     1);
    gguf_set_val_str(gguf.get(), "kv-transform.model_arch",  llm_arch_name(model.arch));
    gguf_set_val_u64(gguf.get(), "kv-transform.model_bytes", llama_model_size(&model));
    gguf_set_val_u32(gguf.get(), "kv-transform.n_layer",     layers_of(hparams, 0));
    gguf_set_val_str(gguf.get(), "kv-transform.digest",      "random");

    const auto add = [&](uint32_t il, const char * what, const std::vector<double> & values, std::vector<int64_t> ne) {
        ggml_tensor * tensor = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, (int) ne.size(), ne.data());
        ggml_format_name(tensor, "layer.%u.%s", il, what);
        for (size_t i = 0; i < values.size(); ++i) {
            ((float *) tensor->data)[i] = (float) values[i];
        }
        gguf_add_tensor(gguf.get(), tensor);
    };

    for (uint32_t il = 0; il < layers_of(hparams, 0); ++il) {
        const int64_t d = hparams.n_embd_head_k(il), n = hparams.n_head_kv(il);
        if (n == 0 || how.left_out.count(il)) {
            continue;
        }

        std::vector<double> centre(d*n), forward, query;
        for (double & c : centre) {
            c = how.centred ? dis(gen) : 0.0;
        }
        add(il, "centre", centre, { d, n });

        for (int64_t head = 0; head < n; ++head) {
            std::vector<double> m(how.kind_of == kind::matrix ? d*d : d);
            for (size_t i = 0; i < m.size(); ++i) {
                m[i] = how.kind_of == kind::matrix ? dis(gen)*0.5/std::sqrt(d) + ((int64_t) i % (d + 1) == 0) : std::exp2(std::round(dis(gen)));
                m[i] = (float) m[i];
            }
            std::vector<double> q(m);
            if (how.kind_of == kind::matrix) {
                q = transposed_inverse(m, d);
            } else {
                for (double & x : q) {
                    x = 1.0/x;
                }
            }
            for (size_t i = 0; i < q.size(); ++i) {
                q[i] *= how.broken && i % 2 ? 1.005 : 1.0;
            }
            forward.insert(forward.end(), m.begin(), m.end());
            query  .insert(query  .end(), q.begin(), q.end());
        }
        const std::vector<int64_t> ne = how.kind_of == kind::matrix ? std::vector<int64_t>{ d, d, n } : std::vector<int64_t>{ d, n };
        add(il, "forward", forward, ne);
        add(il, "query",   query,   ne);
    }

    if (!gguf_write_to_file(gguf.get(), path.c_str(), false)) {
        throw std::runtime_error("cannot write " + path);
    }
}

enum class turn { none, shifted, copied, copied_unified, restored };

static const std::pair<turn, const char *> TURNS[] = {
    { turn::none, "plain" }, { turn::shifted, "shifted" }, { turn::copied, "copied" }, { turn::copied_unified, "copied in one stream" }, { turn::restored, "restored" },
};

static bool decode(llama_context * ctx, const std::vector<llama_token> & tokens, int first, int last, int shift, llama_seq_id seq) {
    llama_batch batch = llama_batch_init(last - first, 0, 1);
    for (int i = first; i < last; ++i) {
        const int at = batch.n_tokens++;

        batch.token[at]     = tokens[i];
        batch.pos[at]       = i - shift;
        batch.n_seq_id[at]  = 1;
        batch.seq_id[at][0] = seq;
        batch.logits[at]    = true;
    }
    const bool done = llama_decode(ctx, batch) == 0;
    llama_batch_free(batch);

    return done;
}

// The logits of the tokens after the turn, or of all when there is none; empty when the model cannot take it, or when the
// context is refused: last_error says why.
static std::vector<float> run(llama_model * model, const char * transform, turn what) {
    llama_context_params params = small_params(false);
    params.type_k          = GGML_TYPE_F32;
    params.type_v          = GGML_TYPE_F32;
    params.kv_transform    = transform;
    params.n_seq_max       = what == turn::copied || what == turn::copied_unified ? 2 : 1;
    params.kv_unified      = what == turn::copied_unified;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; // it would round float32 keys to float16

    last_error.clear();

    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        return {};
    }

    const auto tokens = get_tokens(N_TOKENS, N_TOKENS, SEED);
    if (what == turn::none) {
        return get_logits(model, ctx.get(), tokens);
    }

    llama_memory_t memory = llama_get_memory(ctx.get());
    if (!memory || (what == turn::shifted && !llama_memory_can_shift(memory)) ||
            !decode(ctx.get(), tokens, 0, N_BEFORE, 0, 0)) {
        return {};
    }

    int          shift = 0;
    llama_seq_id seq   = 0;
    if (what == turn::shifted) {
        if (!llama_memory_seq_rm(memory, 0, 0, N_SHIFT)) {
            return {};
        }
        llama_memory_seq_add(memory, 0, N_SHIFT, -1, -N_SHIFT);
        shift = N_SHIFT;
    } else if (what == turn::restored) {
        std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), 0));
        state.resize(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0));
        llama_memory_clear(memory, true);
        if (llama_state_seq_set_data(ctx.get(), state.data(), state.size(), 0) == 0) {
            return {};
        }
    } else {
        seq = 1;
        llama_memory_seq_cp(memory, 0, 1, -1, -1);
    }

    if (!decode(ctx.get(), tokens, N_BEFORE, N_TOKENS, shift, seq)) {
        return {};
    }
    const int          n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<float> res;
    for (int i = 0; i < N_TOKENS - N_BEFORE; ++i) {
        const float * logits = llama_get_logits_ith(ctx.get(), i);
        res.insert(res.end(), logits, logits + n_vocab);
    }
    return res;
}

static bool said(const char * text) {
    return last_error.find(text) != std::string::npos;
}

// prints one line, returns whether everything held
static bool check_arch(llm_arch arch) {
    const llama_model_ptr model = make_model(arch, WEIGHTS);
    if (!model) {
        printf("%-20s no model\n", llm_arch_name(arch));
        return true;
    }

    if (llama_model_is_recurrent(model.get()) || encodes(arch)) {
        printf("%-20s keeps no keys\n", llm_arch_name(arch));
        return true;
    }

    const std::string path  = (std::filesystem::temp_directory_path() / ("kv-transform-" + std::to_string(std::random_device()()))).string();

    // which layers keep keys, and whether they can be centred, the library says
    recipe how = { kind::matrix, true, false, {} };
    for (;;) {
        write_transform(path, *model, how);
        run(model.get(), path.c_str(), turn::none);

        const size_t names = last_error.find("names layer ");
        if (names != std::string::npos) {
            how.left_out.insert(atoi(last_error.c_str() + names + strlen("names layer ")));
        } else if (how.centred && said("calibrate with a kind that does not centre")) {
            how.centred = false;
        } else {
            break;
        }
    }

    std::string line;
    bool        ok = true;

    if (said("--kv-transform is not supported here") || said("in a way of its own")) {
        line = " refused";
    } else if (!last_error.empty()) {
        line = " FAILED: " + last_error.substr(0, last_error.find('\n'));
        ok   = false;
    } else {
        line = how.centred ? " centred" : " not centred";

        const auto changed = [&](kind kind_of, bool centred, bool broken, turn what) {
            write_transform(path, *model, { kind_of, centred, broken, how.left_out });
            return run(model.get(), path.c_str(), what);
        };

        for (const auto & [what, name] : TURNS) {
            // without a transform, too, this one aborts: it has a sliding-window cache without layers
            if (arch == LLM_ARCH_LFM2 && what == turn::shifted) {
                continue;
            }

            const auto plain = run(model.get(), nullptr, what);
            line += std::string(", ") + name;
            if (plain.empty() || has_nan(plain)) {
                line += plain.empty() ? " impossible" : " nan";
                continue;
            }
            const auto error = [&](const std::vector<float> & logits) {
                return logits.size() == plain.size() && !has_nan(logits) ? nmse(plain, logits) : INFINITY;
            };

            const bool   same  = changed(kind::powers, false, false, what) == plain;
            const double exact = error(changed(kind::matrix, how.centred, false, what));
            const double wrong = error(changed(kind::matrix, how.centred, true,  what));
            const bool   holds = same && exact <= EXACT;

            char text[64];
            snprintf(text, sizeof(text), " %s %.1e (%.1e)%s", same ? "same" : "DIFFERS", exact, wrong, holds ? "" : " FAILED");
            line += text;
            ok   &= holds;
        }
    }
    std::filesystem::remove(path);

    printf("%-20s%s\n", llm_arch_name(arch), line.c_str());
    return ok;
}

int main(int argc, char ** argv) {
    return check_archs(argc, argv, check_arch);
}
