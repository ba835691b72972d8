// SPDX-License-Identifier: Apache-2.0

// Any sequence of calls on a family of caches, against a model that is a list of tokens for each.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <sstream>
#include <utility>
#include <vector>

#include "fuzz/input.hpp"
#include "support/generators.hpp"

namespace {

using namespace fuzz;

constexpr Index tokens = 16, longest = 400;
constexpr std::array<castle::Shape, 3> shapes{castle::Shape{.d = 2, .dv = 1},
                                              castle::Shape{.d = 2, .dv = 1, .heads = 2, .kv_heads = 1},
                                              castle::Shape{.d = 2, .dv = 1, .heads = 4, .kv_heads = 2}};

// Sixteen tokens; some poison what they reach.
support::Head<float> make_pool(const castle::Shape& shape) {
    support::Random random(1);
    support::Head<float> h = support::random_heads<float>(random, tokens, shape);
    for (Matrix<float>* m : h.all()) m->row(15).setConstant(std::numeric_limits<float>::quiet_NaN());
    h.kc.row(14).setConstant(std::numeric_limits<float>::infinity());
    return h;
}

const support::Head<float>& pool(const castle::Shape& shape) {
    static const std::array<support::Head<float>, 3> pools{make_pool(shapes[0]), make_pool(shapes[1]),
                                                           make_pool(shapes[2])};
    return pools[std::size_t(std::ranges::find(shapes, shape) - shapes.begin())];
}

support::Head<float> heads_of(const castle::Shape& shape, const std::vector<Index>& list) {
    support::Head<float> head(Index(list.size()), shape);
    support::Head<float> from = pool(shape);
    for (std::size_t m = 0; m < 6; ++m) {
        for (std::size_t t = 0; t < list.size(); ++t) head.all()[m]->row(Index(t)) = from.all()[m]->row(list[t]);
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

struct Sequence {
    castle::UqKvCache<float> cache;
    std::vector<Index> tokens;

    /// The last `rows` outputs, by the parallel form over all tokens.
    Matrix<float> outputs(Index rows) const {
        const Index window = cache.sliding_window();
        const castle::Masks mask =
            window == castle::unlimited ? castle::Masks() : castle::Masks(castle::masks::sliding_window(window));
        return castle::parallel(cache.shape(), heads_of(cache.shape(), tokens).input(), cache.options(), mask)
            .bottomRows(rows);
    }
    void append(const std::vector<Index>& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }
};

std::vector<Index> some_tokens(Input& input, Index count) {
    std::vector<Index> list;
    for (Index i = 0; i < count; ++i) list.push_back(input.below(tokens));
    return list;
}

void extend(Sequence& sequence, const std::vector<Index>& more) {
    const Matrix<float> out = castle::extend(sequence.cache, heads_of(sequence.cache.shape(), more).input());
    sequence.append(more);
    require(same(out, sequence.outputs(out.rows())), "an output is not that of the tokens");
}

// All caches at once: none, one or some tokens each. A byte says how many, and which is the first; the others follow it
// in the pool.
void extend_all(Input& input, std::vector<Sequence>& sequences) {
    constexpr std::array<Index, 16> choices{1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 2, 3, 31, 32, 33, 70};
    const castle::Shape shape = sequences.front().cache.shape();
    std::vector<castle::UqKvCache<float>*> caches;
    std::vector<Index> counts, rows;
    std::vector<std::vector<Index>> lists;
    for (Sequence& one : sequences) {
        const Index choice = input.byte();
        const Index room = longest - Index(one.tokens.size());
        caches.push_back(&one.cache);
        counts.push_back(std::min(choices[std::size_t(choice / 16)], room));
        std::vector<Index>& list = lists.emplace_back();
        for (Index k = 0; k < counts.back(); ++k) list.push_back((choice + k) % tokens);
        rows.insert(rows.end(), list.begin(), list.end());
    }
    Matrix<float> out(Index(rows.size()), shape.heads * shape.dv);
    castle::extend(caches, counts, heads_of(shape, rows).input(), out);
    Index first = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        sequences[i].append(lists[i]);
        require(same(out.middleRows(first, counts[i]), sequences[i].outputs(counts[i])),
                "an output of a batch is not that of the tokens");
        first += counts[i];
    }
}

void check(const Sequence& sequence) {
    const castle::UqKvCache<float>& cache = sequence.cache;
    require(cache.size() == Index(sequence.tokens.size()), "a size is wrong");
    castle::UqKvCache<float> fresh(cache.shape(), cache.options(), 0, cache.sliding_window());
    castle::extend(fresh, heads_of(cache.shape(), sequence.tokens).input());
    for (Index h = 0; h < cache.shape().kv_heads; ++h) {
        require(same(cache.lookahead_keys(h), fresh.lookahead_keys(h)), "lookahead keys are not those of the tokens");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    constexpr std::array<Index, 8> windows = {0, 1, 31, 32, 33, 64, 100, castle::unlimited};
    const Index kind = input.byte();
    const castle::Options options{.lookahead_window = windows[std::size_t(kind % 8)]};
    const castle::Shape shape = shapes[std::size_t(kind / 8 % 3)];
    constexpr std::array<Index, 4> sliding_windows = {castle::unlimited, castle::unlimited, 1, 40};
    const Index sliding_window = sliding_windows[std::size_t(kind / 24 % 4)];
    const Index rollback = input.below(4) * 32;
    std::vector<Sequence> sequences;
    sequences.push_back({castle::UqKvCache<float>(shape, options, rollback, sliding_window), {}});
    for (int step = 0; step < 60 && !input.empty(); ++step) {
        const std::size_t i = std::size_t(input.below(Index(sequences.size())));
        Sequence& sequence = sequences[i];
        castle::UqKvCache<float>& cache = sequence.cache;
        switch (input.below(9)) {
            case 0:
            case 1: {
                const Index count = std::min(input.below(100), longest - Index(sequence.tokens.size()));
                extend(sequence, some_tokens(input, count));
                break;
            }
            case 2: {
                const Index count = input.below(120), most = cache.max_rollback();
                require(most <= cache.size(), "more can be rolled back than there is");
                require(throws<std::invalid_argument>([&] { cache.rollback(count); }) == (count > most),
                        "a rollback went too deep, or was rejected");
                if (count <= most) sequence.tokens.resize(sequence.tokens.size() - std::size_t(count));
                break;
            }
            case 3:
                if (sequences.size() < 4) sequences.push_back({cache.fork(), sequence.tokens});
                break;
            case 4:
                if (sequences.size() > 1) sequences.erase(sequences.begin() + std::ptrdiff_t(i));
                break;
            case 5:
                cache.clear();
                sequence.tokens.clear();
                break;
            case 6: {
                std::stringstream file;
                cache.save(file);
                castle::UqKvCache<float> other = castle::UqKvCache<float>::load(file, {}, rollback);
                require(other.shape() == shape, "a loaded cache has another shape");
                require(other.max_rollback() == cache.max_rollback(), "a loaded cache has another history");
                cache = std::move(other);
                break;
            }
            case 7:
                extend_all(input, sequences);
                break;
            default:
                cache.reserve(input.below(256));
        }
    }
    for (const Sequence& sequence : sequences) check(sequence);
    return 0;
}
