// SPDX-License-Identifier: Apache-2.0

// Views of any shapes as input and output: what fits runs, what does not is std::invalid_argument and leaves the cache
// as it was.
#include <array>
#include <vector>

#include "fuzz/input.hpp"

namespace {

using namespace fuzz;

// A view into memory that is large enough, with a stride of its own.
castle::ConstMatrixView<float> some_view(Input& input, const std::vector<float>& memory) {
    const Index rows = input.below(70), cols = input.below(20), stride = cols + input.below(5);
    return {memory.data(), rows, cols, stride};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<float> memory(70 * 25, 0.25F);
    static std::vector<float> output(70 * 25);
    Input input(data, size);
    const castle::HeadShape shape{.d = 1 + input.below(19), .dv = 1 + input.below(19)};
    const castle::Options options{.lookahead_window = input.below(3) == 0 ? castle::unlimited : input.below(80)};
    castle::UqKvCache<float> cache(shape, options);
    for (int call = 0; call < 6 && !input.empty(); ++call) {
        // Mostly what fits, with one view of another shape.
        const Index rows = input.below(70);
        const auto view = [&](Index cols) {
            return input.below(12) == 0
                       ? some_view(input, memory)
                       : castle::ConstMatrixView<float>(memory.data(), rows, cols, cols + input.below(5));
        };
        castle::HeadInput<float> head;
        for (auto* one : {&head.causal.q, &head.causal.k, &head.lookahead.q, &head.lookahead.k, &head.lookahead.v}) {
            *one = view(shape.d);
        }
        head.causal.v = view(shape.dv);
        const auto into = view(shape.dv);
        const castle::MatrixView<float> out(output.data(), into.rows(), into.cols(), into.cols());
        const auto fits = [&](castle::ConstMatrixView<float> one, Index cols) {
            return one.rows() == head.causal.q.rows() && one.cols() == cols;
        };
        const bool all_fit = fits(head.causal.q, shape.d) && fits(head.causal.k, shape.d) &&
                             fits(head.causal.v, shape.dv) && fits(head.lookahead.q, shape.d) &&
                             fits(head.lookahead.k, shape.d) && fits(head.lookahead.v, shape.d) && fits(into, shape.dv);
        const Index before = cache.size();
        const bool refused = throws<std::invalid_argument>([&] { castle::extend(cache, head, out); });
        require(refused != all_fit, "what fits was refused, or what does not was not");
        require(cache.size() == before + (refused ? 0 : head.causal.q.rows()), "a refused call left tokens");
        const bool parallel_refused = throws<std::invalid_argument>([&] { castle::parallel(head, out, options); });
        require(!all_fit || !parallel_refused || head.causal.q.cols() == 0, "parallel refused what fits");
    }
    return 0;
}
