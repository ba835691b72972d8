// SPDX-License-Identifier: Apache-2.0

// One multi-head layer over a real text: CASTLE, CASTLE with a lookahead window, and standard causal attention with as
// many parameters. Each runs the whole text at once and in pieces, and the outputs have to be bitwise identical.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <castle/layer.hpp>

#include "support/bad_input.hpp"
#include "support/memory.hpp"
#include "support/progress.hpp"
#include "text_attention/memory.hpp"
#include "text_attention/settings.hpp"
#include "text_attention/text.hpp"

namespace {

using castle::Index;
using Matrix = castle::Matrix<float>;

// A way to put the tokens onto the cache: so many at a time.
struct Cut {
    std::string name;
    Index tokens;
};

// One line of the table.
struct Result {
    std::string form;
    Index heads;
    double seconds;
    Index cache_bytes;
    bool is_reference;  // what the other ways are compared with
    bool same_bits;
    float difference;
};

// Each of the 256 bytes gets a random vector with elements in [-1, 1), the same for a seed on every machine.
Matrix embed(const std::string& text, Index d_model, Index seed) {
    std::mt19937_64 bits(static_cast<std::uint64_t>(seed));
    const Matrix vectors = Matrix::NullaryExpr(
        256, d_model, [&](Index, Index) { return static_cast<float>(bits() >> 40) * 0x1p-23F - 1.0F; });
    Matrix x(static_cast<Index>(text.size()), d_model);
    for (Index t = 0; t < x.rows(); ++t) {
        x.row(t) = vectors.row(static_cast<unsigned char>(text[static_cast<std::size_t>(t)]));
    }
    return x;
}

castle::Executor executor([[maybe_unused]] const Settings& settings) {
#ifdef _OPENMP
    if (settings.threads != 1) return castle::openmp_executor(settings.threads);
#endif
    return {};  // the calling thread
}

castle::LayerConfig layer_config(const Settings& settings, Index heads) {
    castle::LayerConfig config{.d_model = settings.d_model,
                               .heads = heads,
                               .d_head = settings.d_head,
                               .seed = static_cast<std::uint64_t>(settings.seed)};
    if (settings.rotary) config.rotary = castle::Rotary{};
    return config;
}

// The layer over x, some tokens at a time. With all of them at once this is what layer.forward(x) does; here the cache
// is kept, to tell its size.
Result run(const castle::Layer<float>& layer, const Matrix& x, Index tokens_at_a_time, Matrix& y, Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    castle::LayerCache<float> cache = layer.make_cache();
    cache.reserve(x.rows());
    for (Index t = 0; t < x.rows(); t += tokens_at_a_time) {
        const Index tokens = std::min(tokens_at_a_time, x.rows() - t);
        layer.extend(cache, x.middleRows(t, tokens), y.middleRows(t, tokens));
        progress.advance(tokens);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    return {.form = {},
            .heads = layer.config().heads,
            .seconds = taken.count(),
            .cache_bytes = cache.bytes().owned,
            .is_reference = false,
            .same_bits = true,
            .difference = 0};
}

bool same_bits(const Matrix& a, const Matrix& b) {
    return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

// Runs every cut and compares it with the first one, the parallel form.
void run_all(const std::string& attention, const castle::Layer<float>& layer, const Matrix& x,
             const std::vector<Cut>& cuts, std::vector<Result>& results, Progress& progress) {
    Matrix reference(x.rows(), x.cols());
    Matrix y(x.rows(), x.cols());
    for (const Cut& cut : cuts) {
        const bool is_reference = &cut == &cuts.front();
        const std::string form = attention + ", " + cut.name;
        progress.say("running " + form);
        y.setConstant(std::numeric_limits<float>::quiet_NaN());  // a row that nobody writes shall not go unnoticed
        Result result = run(layer, x, cut.tokens, is_reference ? reference : y, progress);
        result.form = form;
        result.is_reference = is_reference;
        if (!is_reference) {
            result.same_bits = same_bits(y, reference);
            result.difference = (y - reference).cwiseAbs().maxCoeff();
        }
        results.push_back(result);
    }
}

std::vector<Result> run_forms(const Settings& settings, const Matrix& x) {
    const Cut parallel{.name = "in parallel", .tokens = x.rows()};
    const Cut chunks{.name = fmt::format("in chunks of {}", settings.chunk), .tokens = settings.chunk};
    const Cut single{.name = "token by token", .tokens = 1};
    constexpr Index forms = 7;

    std::vector<Result> results;
    Progress progress(forms * x.rows());
    const auto layer = [&](Index heads, Index window) {
        return castle::Layer<float>(layer_config(settings, heads),
                                    {.lookahead_window = window, .executor = executor(settings)});
    };
    run_all("CASTLE", layer(settings.heads, castle::unlimited), x, {parallel, chunks, single}, results, progress);
    run_all(fmt::format("CASTLE, window {}", settings.window), layer(settings.heads, settings.window), x,
            {parallel, single}, results, progress);
    run_all("causal attention", layer(settings.causal_heads(), 0), x, {parallel, single}, results, progress);
    return results;
}

void print_head(const Settings& settings, const Text& text) {
    const Index parameters = 7 * settings.heads * settings.d_head * settings.d_model;
    fmt::print("The first {} bytes of {}\n", text.bytes.size(), text.origin);
    fmt::print("Layers of {} parameters: d_model {}, d_head {}, {} embedding, seed {}\n\n", parameters,
               settings.d_model, settings.d_head, settings.rotary ? "rotary" : "no rotary", settings.seed);
    std::fflush(stdout);  // before the work, also into a pipe
}

void print_table(const std::vector<Result>& results, Index tokens) {
    std::size_t width = 0;
    for (const Result& result : results) width = std::max(width, result.form.size());
    const std::string heading =
        fmt::format("{:<{}}  heads  tokens   seconds   tokens/s  cache MiB  largest difference", "form", width);
    fmt::print("{}\n{}\n", heading, std::string(heading.size(), '-'));
    for (const Result& result : results) {
        constexpr double mib = 1024.0 * 1024.0;
        fmt::print("{:<{}}  {:>5}  {:>6}  {:>8.3f}  {:>9.0f}  {:>9.1f}  {:>18}\n", result.form, width, result.heads,
                   tokens, result.seconds, static_cast<double>(tokens) / result.seconds,
                   static_cast<double>(result.cache_bytes) / mib,
                   result.is_reference ? "reference" : fmt::format("{:g}", result.difference));
    }
}

// Whether every form of an attention is bitwise identical to its parallel form; says which is not.
bool report_bits(const std::vector<Result>& results) {
    bool all_same = true;
    for (const Result& result : results) {
        if (result.same_bits) continue;
        all_same = false;
        fmt::print(stderr,
                   "text_attention: \"{}\" has other bits than the parallel form, the largest difference is {:g}\n",
                   result.form, result.difference);
    }
    if (all_same) fmt::print("\nEvery way of cutting the text gave the same bits as the parallel form.\n");
    return all_same;
}

int run_program(int argc, char** argv) {
    const std::optional<Settings> settings = parse(argc, argv);
    if (!settings) return 0;
    const Text text = read_text(*settings);
    const Index tokens = static_cast<Index>(text.bytes.size());
    check_memory(fmt::format("{} tokens with these sizes", tokens), needed_memory(*settings, tokens));

    print_head(*settings, text);
    const Matrix x = embed(text.bytes, settings->d_model, settings->seed);
    const std::vector<Result> results = run_forms(*settings, x);
    print_table(results, tokens);
    const bool all_same = report_bits(results);
    if (std::fflush(stdout) != 0) throw BadInput("the table could not be written to the standard output");
    return all_same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("text_attention", [&] { return run_program(argc, argv); });
}
