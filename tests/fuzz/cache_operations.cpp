// SPDX-License-Identifier: Apache-2.0

// Any sequence of calls on a family of caches, against a model that is a list of tokens for each.
#include <algorithm>
#include <cstring>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "fuzz/input.hpp"
#include "support/runs.hpp"

namespace {

using namespace fuzz;

constexpr Index d = 2, dv = 1, tokens = 16, longest = 300;

// Sixteen tokens; some poison what they reach.
const support::Head<float>& pool() {
    static const support::Head<float> head = [] {
        support::Random random(1);
        support::Head<float> h = support::random_head<float>(random, {tokens, d, dv});
        for (Matrix<float>* m : h.all()) m->row(15).setConstant(std::numeric_limits<float>::quiet_NaN());
        h.kc.row(14).setConstant(std::numeric_limits<float>::infinity());
        return h;
    }();
    return head;
}

support::Head<float> head_of(const std::vector<Index>& text) {
    support::Head<float> head({Index(text.size()), d, dv});
    support::Head<float> from = pool();
    for (std::size_t m = 0; m < 6; ++m) {
        for (std::size_t t = 0; t < text.size(); ++t) head.all()[m]->row(Index(t)) = from.all()[m]->row(text[t]);
    }
    return head;
}

// NaNs may have other payloads.
bool same(const Matrix<float>& a, const Matrix<float>& b) {
    return a.rows() == b.rows() && a.cols() == b.cols() &&
           std::equal(a.data(), a.data() + a.size(), b.data(), [](float x, float y) {
               return (std::isnan(x) && std::isnan(y)) || std::memcmp(&x, &y, sizeof x) == 0;
           });
}

struct Text {
    castle::UqKvCache<float> cache;
    std::vector<Index> tokens;
};

std::vector<Index> some_tokens(Input& input, Index count) {
    std::vector<Index> text;
    for (Index i = 0; i < count; ++i) text.push_back(input.below(tokens));
    return text;
}

void extend(Text& text, const std::vector<Index>& more) {
    const Matrix<float> out = castle::extend(text.cache, head_of(more).input());
    text.tokens.insert(text.tokens.end(), more.begin(), more.end());
    const Matrix<float> alone = castle::parallel(head_of(text.tokens).input(), text.cache.options());
    require(same(out, alone.bottomRows(out.rows())), "an output is not that of the tokens");
}

void check(const Text& text) {
    require(text.cache.size() == Index(text.tokens.size()), "a size is wrong");
    castle::UqKvCache<float> fresh(text.cache.shape(), text.cache.options());
    castle::extend(fresh, head_of(text.tokens).input());
    require(same(text.cache.lookahead_keys(), fresh.lookahead_keys()), "lookahead keys are not those of the tokens");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    constexpr std::array<Index, 8> windows = {0, 1, 31, 32, 33, 64, 100, castle::unlimited};
    const castle::Options options{.lookahead_window = windows[std::size_t(input.below(8))]};
    const Index rollback = input.below(4) * 32;
    std::vector<Text> texts;
    texts.push_back({castle::UqKvCache<float>({.d = d, .dv = dv}, options, rollback), {}});
    for (int step = 0; step < 60 && !input.empty(); ++step) {
        const std::size_t i = std::size_t(input.below(Index(texts.size())));
        Text& text = texts[i];
        switch (input.below(9)) {
            case 0:
            case 1: {
                const Index count = std::min(input.below(100), longest - Index(text.tokens.size()));
                extend(text, some_tokens(input, count));
                break;
            }
            case 2: {
                const Index count = input.below(120), most = text.cache.max_rollback();
                require(most <= text.cache.size(), "more can be taken off than there is");
                require(throws<std::invalid_argument>([&] { text.cache.rollback(count); }) == (count > most),
                        "a rollback went too deep, or was refused");
                if (count <= most) text.tokens.resize(text.tokens.size() - std::size_t(count));
                break;
            }
            case 3:
                if (texts.size() < 4) texts.push_back({text.cache.fork(), text.tokens});
                break;
            case 4:
                if (texts.size() > 1) texts.erase(texts.begin() + std::ptrdiff_t(i));
                break;
            case 5:
                text.cache.clear();
                text.tokens.clear();
                break;
            case 6: {
                std::stringstream file;
                text.cache.save(file);
                castle::UqKvCache<float> other = castle::UqKvCache<float>::load(file, {}, rollback);
                require(other.max_rollback() == text.cache.max_rollback(), "a loaded cache has another history");
                text.cache = std::move(other);
                break;
            }
            case 7: {
                std::vector<castle::UqKvCache<float>*> batch;
                for (Text& one : texts) batch.push_back(&one.cache);
                const std::vector<Index> row = some_tokens(input, Index(texts.size()));
                if (Index(text.tokens.size()) >= longest) break;
                Matrix<float> out(Index(texts.size()), dv);
                castle::extend(batch, head_of(row).input(), out);
                for (std::size_t k = 0; k < texts.size(); ++k) {
                    texts[k].tokens.push_back(row[k]);
                    const Matrix<float> alone = castle::parallel(head_of(texts[k].tokens).input(), options);
                    require(same(out.row(Index(k)), alone.bottomRows(1)),
                            "an output of a batch is not that of the tokens");
                }
                break;
            }
            default:
                text.cache.reserve(input.below(256));
        }
    }
    for (const Text& text : texts) check(text);
    return 0;
}
