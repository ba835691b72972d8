// SPDX-License-Identifier: Apache-2.0

// Views of any shapes as input and output: what fits runs, what does not is std::invalid_argument and leaves the cache
// as it was.
#include <array>
#include <vector>

#include "fuzz/input.hpp"

namespace {

using namespace fuzz;

constexpr Index most_cols = 80;  // of all heads

// A view into memory that is large enough, with a stride of its own.
castle::ConstMatrixView<float> some_view(Input& input, const std::vector<float>& memory) {
    const Index rows = input.below(70), cols = input.below(most_cols), stride = cols + input.below(5);
    return {memory.data(), rows, cols, stride};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<float> memory(70 * (most_cols + 5), 0.25F);
    static std::vector<float> output(70 * (most_cols + 5));
    Input input(data, size);
    const Index d = 1 + input.below(19), dv = 1 + input.below(19), kv_heads = 1 + input.below(2);
    const castle::Shape shape{.d = d, .dv = dv, .heads = kv_heads * (1 + input.below(2)), .kv_heads = kv_heads};
    const std::array<Index, 3> windows{castle::unlimited, 0, input.below(80)};
    const castle::Options options{.lookahead_window = windows[std::size_t(input.below(3))]};
    castle::UqKvCache<float> cache(shape, options);
    for (int call = 0; call < 6 && !input.empty(); ++call) {
        // Mostly what fits, with one view of another shape.
        const Index rows = input.below(70);
        const auto view = [&](Index cols) {
            return input.below(12) == 0
                       ? some_view(input, memory)
                       : castle::ConstMatrixView<float>(memory.data(), rows, cols, cols + input.below(5));
        };
        const Index keys = shape.kv_heads * shape.d;
        castle::Input<float> tokens;
        tokens.causal = {.q = view(shape.heads * shape.d), .k = view(keys), .v = view(shape.kv_heads * shape.dv)};
        // Now and then without lookahead, which a window of 0 has no use for.
        if (input.below(4) != 0) tokens.lookahead = {.q = view(keys), .k = view(keys), .v = view(keys)};
        const auto into = view(shape.heads * shape.dv);
        const castle::MatrixView<float> out(output.data(), into.rows(), into.cols(), into.cols());
        const auto fits = [&](castle::ConstMatrixView<float> one, Index cols) {
            return one.rows() == tokens.causal.q.rows() && one.cols() == cols;
        };
        const bool lookahead_fits =
            (options.lookahead_window == 0 && !tokens.has_lookahead()) ||
            (fits(tokens.lookahead.q, keys) && fits(tokens.lookahead.k, keys) && fits(tokens.lookahead.v, keys));
        const bool all_fit = fits(tokens.causal.q, shape.heads * shape.d) && fits(tokens.causal.k, keys) &&
                             fits(tokens.causal.v, shape.kv_heads * shape.dv) && lookahead_fits &&
                             fits(into, shape.heads * shape.dv);
        const Index before = cache.size();
        const bool rejected = throws<std::invalid_argument>([&] { castle::extend(cache, tokens, out); });
        require(rejected != all_fit, "what fits was rejected, or what does not was not");
        require(cache.size() == before + (rejected ? 0 : tokens.causal.q.rows()), "a rejected call left tokens");
        const bool parallel_rejected =
            throws<std::invalid_argument>([&] { castle::parallel(shape, tokens, out, options); });
        require(parallel_rejected != all_fit, "parallel rejected what fits, or did not what does not");
        // Several calls at once: any counts, of which few come to the rows.
        const Index count = input.below(70);
        const std::array<castle::UqKvCache<float>*, 1> caches{&cache};
        const std::array<Index, 1> counts{input.below(2) == 0 ? count : tokens.causal.q.rows()};
        const bool ragged_fits = all_fit && counts[0] == tokens.causal.q.rows();
        const Index between = cache.size();
        const bool batch_rejected = throws<std::invalid_argument>([&] { castle::extend(caches, counts, tokens, out); });
        require(batch_rejected != ragged_fits, "a batch rejected what fits, or did not what does not");
        require(cache.size() == between + (batch_rejected ? 0 : counts[0]), "a rejected batch left tokens");
        // A lone head takes its sizes from the views.
        const bool lone_rejected = throws<std::invalid_argument>([&] { castle::parallel(tokens, out, options); });
        require(!all_fit || shape.heads > 1 || !lone_rejected, "parallel of a lone head rejected what fits");
    }
    return 0;
}
