#include "inputs.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <sstream>
#include <system_error>

void library_log::on_log(ggml_log_level level, const char * text, void * user_data) {
    auto & log = *(library_log *) user_data;

    const std::lock_guard<std::mutex> lock(log.mutex);
    if (level == GGML_LOG_LEVEL_ERROR && log.first_error.empty()) {
        log.first_error = text;
        log.first_error.erase(std::min(log.first_error.find('\n'), log.first_error.size()));
    }
    // a rule without effect is worth a word without -v
    if (log.verbose || (level == GGML_LOG_LEVEL_WARN && strncmp(text, "--kv-layers", 11) == 0)) {
        fputs(text, stderr);
    }
}

void library_log::start(bool verbose) {
    this->verbose = verbose;
    llama_log_set(on_log, this);
}

std::string library_log::take_error() {
    const std::lock_guard<std::mutex> lock(mutex);

    std::string res;
    std::swap(res, first_error);
    return res;
}

int64_t parse_whole(const std::string & name, const std::string & text, int64_t least, int64_t most) {
    int64_t value = 0;
    const auto res = std::from_chars(text.data(), text.data() + text.size(), value);
    if (res.ec != std::errc() || res.ptr != text.data() + text.size() || value < least || value > most) {
        throw usage_error(name + " '" + text + "': a whole number from " + std::to_string(least) + " to " +
                          std::to_string(most) + " is needed");
    }

    return value;
}

llama_model_ptr load_model(const std::string & path) {
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!model) {
        throw std::runtime_error("cannot load " + path);
    }
    if (llama_vocab_type(llama_model_get_vocab(model.get())) == LLAMA_VOCAB_TYPE_NONE) {
        throw std::runtime_error(path + ": the model has no tokenizer");
    }
    if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
        throw std::runtime_error(path + ": not a model that only predicts the next token");
    }

    return model;
}

static std::string read_text(const std::string & path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (!file || !(text << file.rdbuf())) {
        throw std::runtime_error(path + ": " + (errno ? std::generic_category().message(errno) : "no text in it"));
    }

    return text.str();
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & path, bool parse_special) {
    const std::string text = read_text(path);
    if (text.size() > (size_t) std::numeric_limits<int32_t>::max()) {
        throw std::runtime_error(path + ": longer than 2 GiB");
    }

    std::vector<llama_token> tokens;
    if (llama_vocab_get_add_bos(vocab)) {
        tokens.push_back(llama_vocab_bos(vocab));
    }

    const size_t  n_special = tokens.size();
    const int32_t needed    = -llama_tokenize(vocab, text.data(), text.size(), nullptr, 0, false, parse_special);
    if (needed <= 0) {
        throw std::runtime_error(path + ": " + (needed < 0 ? "more tokens than can be counted" : "no tokens in it"));
    }
    tokens.resize(n_special + needed);
    llama_tokenize(vocab, text.data(), text.size(), tokens.data() + n_special, needed, false, parse_special);

    return tokens;
}

int32_t checked_n_ctx(const llama_model * model, int32_t n_ctx) {
    const int32_t n_ctx_train = llama_model_n_ctx_train(model);
    if (n_ctx > n_ctx_train) {
        throw std::runtime_error("-c " + std::to_string(n_ctx) + ": the model was trained on " +
                                 std::to_string(n_ctx_train) + " tokens; -c 0 takes as many");
    }

    return n_ctx == 0 ? n_ctx_train : n_ctx;
}

void print_out(const std::string & data) {
    if (fwrite(data.data(), 1, data.size(), stdout) != data.size() || fflush(stdout) != 0) {
        throw std::runtime_error(std::string("cannot write to standard output: ") + strerror(errno));
    }
}

int run_program(library_log & log, void (*run)(int argc, char ** argv, library_log & log), int argc, char ** argv) {
    try {
        run(argc, argv, log);
        return 0;
    } catch (const usage_error & err) {
        fprintf(stderr, "error: %s\n", err.what());
        return 2;
    } catch (const std::exception & err) {
        const std::string why = log.take_error();
        fprintf(stderr, "error: %s%s%s\n", err.what(), why.empty() ? "" : ": ", why.c_str());
        return 1;
    }
}
