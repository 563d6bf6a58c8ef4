#pragma once

#include "llama-cpp.h"

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

// A command line that cannot be used. what() is one line.
struct usage_error : public std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// What the library logs. Its first error explains a failure, what follows repeats that something failed.
class library_log {
public:
    // takes over the library's log until the program ends
    // verbose: all of it on stderr; else only that a rule has no effect
    void start(bool verbose);

    // the first error since the last call; empty when there was none
    std::string take_error();

private:
    static void on_log(ggml_log_level level, const char * text, void * user_data);

    std::mutex  mutex;
    bool        verbose = false;
    std::string first_error;
};

// throws usage_error where it is no whole number from least on
int64_t parse_whole(const std::string & name, const std::string & text, int64_t least, int64_t most);

// throws std::runtime_error when it cannot be read, or predicts nothing but the next token
llama_model_ptr load_model(const std::string & path);

// The tokens of a text, with a BOS token before them where the model wants one.
//   parse_special: names of special tokens in the text stand for these tokens
// throws std::runtime_error
std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & path, bool parse_special);

// chunk's tokens n_ctx at most; throws std::runtime_error when the model was not trained on as many. 0: as many as it was
int32_t checked_n_ctx(const llama_model * model, int32_t n_ctx);

// writes all of it to stdout at once, so that a reader sees whole pieces only; throws std::runtime_error
void print_out(const std::string & data);

// runs a program: exit status 2 for a usage_error, 1 for another exception, with one line on stderr
int run_program(library_log & log, void (*run)(int argc, char ** argv, library_log & log), int argc, char ** argv);
