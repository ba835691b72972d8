// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/saved.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Caches as bytes, there and back.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Save : public ::testing::Test {};
TYPED_TEST_SUITE(Save, support::Scalars);

constexpr Index d = 7, dv = 5;

TEST(Checksum, IsThatOfTheStandard) {
    castle::detail::Checksum checksum;
    EXPECT_EQ(checksum.value(), 0U);
    checksum.add("123456789", 9);
    EXPECT_EQ(checksum.value(), 0xcbf43926U);  // the check value of CRC-32/ISO-HDLC
    for (const std::size_t cut : {1U, 7U, 8U, 9U, 16U, 40U}) {
        const std::string text = "The quick brown fox jumps over the lazy dog";
        castle::detail::Checksum parts;
        parts.add(text.data(), cut);
        parts.add(text.data() + cut, text.size() - cut);
        EXPECT_EQ(parts.value(), 0x414fa339U);
    }
}

TYPED_TEST(Save, ALoadedCacheGoesOnWithTheSameBits) {
    using T = TypeParam;
    for (std::uint64_t seed = 3500; seed < 3540; ++seed) {
        Random random(seed);
        const Index window = random.pick(std::array<Index, 7>{0, 1, 33, 64, 100, 200, castle::unlimited});
        const Index before = random.integer(0, 300);
        const castle::Options options{.scale = seed % 2 == 0 ? std::optional<double>() : 0.3,
                                      .lookahead_window = window,
                                      .silu = seed % 5 != 0,
                                      .causal_keys = seed % 7 != 0};
        SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", before, " tokens"));
        const castle::Shape shape =
            seed % 3 != 0 ? castle::Shape{.d = d, .dv = dv} : random.pick(grouped_shapes(d, dv));
        const Head<T> head = random_heads<T>(random, before + 150, shape);
        castle::UqKvCache<T> cache(shape, options, 64);
        run_extend(cache, head.first_tokens(before), random_split(random, before));
        // What was rolled back must not be in the file either.
        castle::extend(cache, head.input().tokens(before, 20));
        cache.rollback(20);

        const std::string bytes = saved(cache);
        castle::UqKvCache<T> other = loaded<T>(bytes);
        EXPECT_EQ(other.size(), before);
        EXPECT_TRUE(other.shape() == shape) << words_of(other.shape());
        EXPECT_EQ(other.options().lookahead_window, window);
        EXPECT_EQ(other.options().silu, options.silu);
        EXPECT_EQ(other.options().causal_keys, options.causal_keys);
        EXPECT_EQ(other.max_rollback(), cache.max_rollback());
        EXPECT_TRUE(same_bits(all_lookahead_keys(other), all_lookahead_keys(cache)));
        EXPECT_EQ(saved(other), bytes);

        const Index back = random.integer(0, cache.max_rollback());
        for (castle::UqKvCache<T>* one : {&cache, &other}) one->rollback(back);
        const auto rest = head.input().tokens(before - back, 100 + back);
        EXPECT_TRUE(same_bits(castle::extend(cache, rest), castle::extend(other, rest)));
        EXPECT_TRUE(same_bits(all_lookahead_keys(other), all_lookahead_keys(cache)));
    }
}

TYPED_TEST(Save, TellsEqualCachesByEqualBytes) {
    using T = TypeParam;
    Random random(3550);
    const Head<T> head = random_head<T>(random, {200, d, dv});
    castle::UqKvCache<T> one({.d = d, .dv = dv}, {}, 0), other({.d = d, .dv = dv}, {}, 0);
    castle::extend(one, head.input());
    run_extend(other, head.input(), one_by_one(200));
    EXPECT_EQ(saved(one), saved(other));
}

// A narrow mask leaves keys out of a block's folding, and what a rollback would need of them out of the history.
TYPED_TEST(Save, HasNothingOfTokensThatWereThereBefore) {
    using T = TypeParam;
    Random random(3560);
    const castle::Mask narrow = castle::masks::sliding_window(30);
    const Head<T> before = random_head<T>(random, {700, d, dv}), head = random_head<T>(random, {700, d, dv});
    const castle::UqKvCache<T> empty({.d = d, .dv = dv}, {}, 200);
    castle::UqKvCache<T> fresh = empty.fork(), used = empty.fork();
    castle::extend(used, before.input());
    used.clear();
    for (castle::UqKvCache<T>* cache : {&fresh, &used}) {
        Matrix<T> out(700, dv);
        castle::extend(*cache, head.input(), out, narrow);
    }
    EXPECT_EQ(saved(fresh), saved(used));
}

TYPED_TEST(Save, OfACacheAfterAFailedCallIsAsBefore) {
    using T = TypeParam;
    Random random(3570);
    const castle::Shape shape{.d = d, .dv = dv};
    const Head<T> head = random_head<T>(random, {500, d, dv});
    castle::UqKvCache<T> one(shape), other(shape);
    for (castle::UqKvCache<T>* cache : {&one, &other}) castle::extend(*cache, head.first_tokens(100));
    const std::string before = saved(one);
    // The first call with a mask needs memory for its words.
    const castle::Mask mask = castle::masks::sliding_window(30);
    const std::vector<castle::UqKvCache<T>*> both{&one, &other};
    const std::vector<Index> counts{200, 200};
    Matrix<T> out(400, dv);
    bool failed = true;
    for (long successes = 0; failed; ++successes) {
        failed = false;
        try {
            const Allocations::Failure failure(successes);
            castle::extend<T>(both, counts, head.input().tokens(100, 400), {.out = out}, mask);
        } catch (const std::bad_alloc&) {
            failed = true;
            EXPECT_EQ(saved(one), before) << successes;
            EXPECT_EQ(saved(other), before) << successes;
        }
        ASSERT_LT(successes, 1000);
    }
    EXPECT_EQ(one.size(), 300);
}

TYPED_TEST(Save, ALoadedCacheKeepsAsMuchHistoryAsItIsAskedTo) {
    using T = TypeParam;
    Random random(3560);
    const Head<T> head = random_head<T>(random, {200, d, dv});
    castle::UqKvCache<T> cache({.d = d, .dv = dv}, {}, 128);
    castle::extend(cache, head.input());
    for (const Index rollback : {0, 32, 64, 1000}) {
        castle::UqKvCache<T> other = loaded<T>(saved(cache), rollback);
        EXPECT_EQ(other.max_rollback(), 200 % 32 + std::min<Index>(rollback, 128));
    }
}

TYPED_TEST(Save, CachesFollowOneAnotherInAStream) {
    using T = TypeParam;
    Random random(3570);
    const Head<T> head = random_head<T>(random, {90, d, dv});
    castle::UqKvCache<T> first({.d = d, .dv = dv}), second({.d = d, .dv = dv}, {.lookahead_window = 10});
    castle::UqKvCache<T> third({.d = d, .dv = dv}, {.lookahead_window = 0});
    castle::extend(first, head.input());
    castle::extend(second, head.first_tokens(33));
    castle::extend(third, head.causal_input().tokens(0, 64));
    std::stringstream stream;
    first.save(stream);
    second.save(stream);
    third.save(stream);
    stream << "the rest";
    EXPECT_EQ(castle::UqKvCache<T>::load(stream).size(), 90);
    EXPECT_EQ(castle::UqKvCache<T>::load(stream).size(), 33);
    castle::UqKvCache<T> causal = castle::UqKvCache<T>::load(stream);
    EXPECT_EQ(causal.max_rollback(), 64);
    const auto rest = head.causal_input().tokens(64, 26);
    EXPECT_TRUE(same_bits(castle::extend(causal, rest), castle::extend(third, rest)));
    std::string word;
    stream >> word;
    EXPECT_EQ(word, "the");
}

template <class T>
void expect_rejected(const std::string& bytes) {
    EXPECT_THROW(loaded<T>(bytes), std::runtime_error);
}

TYPED_TEST(Save, RejectsEveryFlippedBitAndEveryTruncation) {
    using T = TypeParam;
    Random random(3580);
    const Head<T> head = random_head<T>(random, {70, 2, 1});
    castle::UqKvCache<T> cache({.d = 2, .dv = 1}, {.lookahead_window = 40}, 32);
    castle::extend(cache, head.input());
    const std::string bytes = saved(cache);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        std::string changed = bytes;
        changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
        SCOPED_TRACE(i);
        expect_rejected<T>(changed);
        changed[i] = static_cast<char>(~bytes[i]);
        expect_rejected<T>(changed);
        expect_rejected<T>(bytes.substr(0, i));
    }
    EXPECT_EQ(loaded<T>(bytes).size(), 70);
}

// Where the identity and its checksum end, and the elements begin.
constexpr std::size_t identity_end = 8 + 8 * castle::detail::SavedIdentity::word_count;
constexpr std::size_t elements_begin = identity_end + 8;

// The places of what an identity says among its words.
namespace place {
constexpr std::size_t version = 0, byte_order = 1;
constexpr std::size_t d = 5, dv = 6, heads = 7, kv_heads = 8, window = 9, silu = 10, causal_keys = 11, scale = 12;
constexpr std::size_t sliding_window = 22, size = 24, undoable = 25;  // after the words of a layer and of score terms
}  // namespace place

// A cache whose identity has been changed and whose checksums fit again.
std::string forged(std::string bytes, std::size_t word, std::uint64_t value) {
    const auto put = [&](std::size_t place, std::uint64_t x) {
        for (unsigned i = 0; i < 8; ++i) bytes[place + i] = static_cast<char>(x >> (8 * i));
    };
    put(8 + 8 * word, value);
    castle::detail::Checksum checksum;
    checksum.add(bytes.data(), identity_end);
    put(identity_end, checksum.value());
    const std::size_t elements_end = bytes.size() - 8;
    checksum.add(bytes.data() + elements_begin, elements_end - elements_begin);
    put(elements_end, checksum.value());
    return bytes;
}

// Each half with the checksum that it came with.
TYPED_TEST(Save, RejectsTheIdentityOfOneCacheWithTheElementsOfAnother) {
    using T = TypeParam;
    Random random(3585);
    const Head<T> head = random_head<T>(random, {70, d, dv});
    castle::UqKvCache<T> one({.d = d, .dv = dv}, {.scale = 0.25}), other({.d = d, .dv = dv}, {.scale = 0.5});
    castle::extend(one, head.input());
    castle::extend(other, head.input());
    const std::string first = saved(one), second = saved(other);
    ASSERT_EQ(first.size(), second.size());
    expect_rejected<T>(first.substr(0, elements_begin) + second.substr(elements_begin));
    EXPECT_EQ(forged(second, place::scale, std::bit_cast<std::uint64_t>(0.25)).substr(0, elements_begin),
              first.substr(0, elements_begin));
}

TYPED_TEST(Save, RejectsForeignCachesWhateverTheirChecksum) {
    using T = TypeParam;
    using Other = std::conditional_t<std::same_as<T, float>, double, float>;
    Random random(3590);
    const Head<T> head = random_head<T>(random, {70, d, dv});
    castle::UqKvCache<T> cache({.d = d, .dv = dv});
    castle::extend(cache, head.input());
    const std::string bytes = saved(cache);
    expect_rejected<T>("");
    expect_rejected<T>("castle");
    expect_rejected<T>(std::string(100000, 'x'));
    expect_rejected<Other>(bytes);

    // Sizes within the limits, of a product beyond all numbers.
    expect_rejected<T>(forged(forged(bytes, place::d, std::uint64_t(1) << 24), place::size, std::uint64_t(1) << 40));
    // Heads that key-value heads do not divide, or that are fewer.
    expect_rejected<T>(forged(forged(bytes, place::heads, 3), place::kv_heads, 2));
    expect_rejected<T>(forged(forged(bytes, place::heads, 2), place::kv_heads, 4));

    for (std::size_t word = 0; word < castle::detail::SavedIdentity::word_count; ++word) {
        for (const std::uint64_t value : {std::uint64_t(0), std::uint64_t(1), std::uint64_t(2), std::uint64_t(3),
                                          std::uint64_t(65), std::uint64_t(1) << 24, std::uint64_t(1) << 40,
                                          std::uint64_t(1) << 62, std::numeric_limits<std::uint64_t>::max()}) {
            // Some of these are caches: without SiLU, with another scale, of more query heads.
            try {
                castle::UqKvCache<T> other = loaded<T>(forged(bytes, word, value));
                EXPECT_TRUE(word == place::size || word == place::window || word == place::silu ||
                            word == place::causal_keys || word == place::scale || word == place::undoable ||
                            word == place::heads || word == place::sliding_window ||
                            forged(bytes, word, value) == bytes)
                    << "word " << word << ", " << value;
                if (word != place::heads || value == 1) castle::extend(other, head.input());
            } catch (const std::runtime_error&) {
            }
        }
    }
}

// Those of castle before grouped queries, and before masks.
TYPED_TEST(Save, RejectsAnotherVersionOfTheFormat) {
    using T = TypeParam;
    const std::string bytes = saved(castle::UqKvCache<T>({.d = d, .dv = dv}));
    EXPECT_EQ(forged(bytes, place::version, 3), bytes);
    for (const std::uint64_t version : {0U, 1U, 2U, 4U}) {
        EXPECT_EQ(message<std::runtime_error>([&] { loaded<T>(forged(bytes, place::version, version)); }),
                  "castle::load: the saved cache is of another version of the format");
    }
}

// Sizes are no reason to ask for memory before as much has come.
TYPED_TEST(Save, AllocatesNoMoreThanTheStreamHasBytesFor) {
    using T = TypeParam;
    castle::UqKvCache<T> empty({.d = d, .dv = dv});
    constexpr std::uint64_t most = std::uint64_t(1) << 24;
    const auto expect_little = [&](const std::vector<std::size_t>& words, std::uint64_t value) {
        std::string bytes = saved(empty);
        for (const std::size_t word : words) bytes = forged(bytes, word, value);
        const Index before = Allocations::bytes();
        expect_rejected<T>(bytes);
        EXPECT_LT(Allocations::bytes() - before, 8 << 20);
    };
    expect_little({place::d, place::dv, place::size}, most - 1);
    expect_little({place::heads, place::kv_heads, place::size}, most / 8);
}

// A cache without tokens is but its sizes, however large.
TYPED_TEST(Save, AllocatesNothingToSpeakOfForNoTokens) {
    using T = TypeParam;
    castle::UqKvCache<T> empty({.d = d, .dv = dv});
    castle::UqKvCache<T> without_lookahead({.d = d, .dv = dv}, {.lookahead_window = 0});
    constexpr std::uint64_t most = std::uint64_t(1) << 24;
    const auto expect_little = [](const std::string& bytes) {
        const Index before = Allocations::bytes();
        try {
            EXPECT_EQ(loaded<T>(bytes).size(), 0);
        } catch (const std::runtime_error&) {
        }
        EXPECT_LT(Allocations::bytes() - before, 8 << 20);
    };
    for (const std::string& bytes : {saved(empty), saved(without_lookahead)}) {
        expect_little(forged(forged(bytes, place::d, most), place::dv, most));
        // As many heads as elements of such a size.
        for (const std::uint64_t kv_heads : {std::uint64_t(1), most / 8}) {
            expect_little(forged(forged(bytes, place::heads, most / 8), place::kv_heads, kv_heads));
        }
    }
}

TYPED_TEST(Save, OfALayerKnowsItsLayer) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const castle::Layer<T> layer(config, {.lookahead_window = 50});
    Random random(3600);
    Matrix<T> x(200, 20);
    fill_normal(random, x);
    castle::LayerCache<T> cache = layer.make_cache();
    layer.extend(cache, x.topRows(150));
    const std::string bytes = saved(cache);
    const auto load = [&](const auto& by) {
        std::istringstream in(bytes);
        return by.load_cache(in);
    };
    castle::LayerCache<T> other = load(layer);
    EXPECT_EQ(other.max_rollback(), cache.max_rollback());
    other.rollback(60);
    EXPECT_TRUE(same_bits(layer.extend(other, x.bottomRows(110)), Matrix<T>(layer.forward(x).bottomRows(110))));

    castle::LayerConfig changed = config;
    changed.rotary->base = 500;
    EXPECT_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50})), std::runtime_error);
    changed = config;
    changed.rotary->causal_v = true;
    EXPECT_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50})), std::runtime_error);
    changed.rotary.reset();
    EXPECT_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50})), std::runtime_error);
    changed = config;
    changed.heads = 4;
    EXPECT_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50})), std::runtime_error);
    changed = config;
    changed.kv_heads = 1;
    EXPECT_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50})), std::runtime_error);
    changed.kv_heads = 3;
    EXPECT_NO_THROW(load(castle::Layer<T>(changed, {.lookahead_window = 50}))) << "as many as there are heads";
    EXPECT_THROW(load(castle::Layer<T>(config, {.lookahead_window = 51})), std::runtime_error);
    EXPECT_THROW(load(castle::Layer<T>(config, {.lookahead_window = 0})), std::runtime_error);
    expect_rejected<T>(bytes);

    // Nor is that of projected heads one of a layer, be they of the same shape.
    castle::UqKvCache<T> heads({.d = 6, .dv = 6, .heads = 3, .kv_heads = 3}, {.lookahead_window = 50});
    std::istringstream in(saved(heads));
    EXPECT_THROW(layer.load_cache(in), std::runtime_error);
}

TYPED_TEST(Save, OfALayerWithGroupedQueriesGoesOnWithTheSameBits) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6, .rotary = castle::Rotary{}};
    for (const Index window : {Index(0), Index(50), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        const castle::Layer<T> layer(config, {.lookahead_window = window});
        Random random(3605);
        Matrix<T> x(200, 20);
        fill_normal(random, x);
        castle::LayerCache<T> cache = layer.make_cache();
        layer.extend(cache, x.topRows(150));
        std::istringstream in(saved(cache));
        castle::LayerCache<T> other = layer.load_cache(in);
        EXPECT_EQ(other.max_rollback(), cache.max_rollback());
        for (const Index h : {0, 1}) EXPECT_TRUE(same_bits(other.lookahead_keys(h), cache.lookahead_keys(h)));
        other.rollback(60);
        EXPECT_TRUE(same_bits(layer.extend(other, x.bottomRows(110)), Matrix<T>(layer.forward(x).bottomRows(110))));
    }
}

TYPED_TEST(Save, RejectsElementsInAnotherByteOrder) {
    using T = TypeParam;
    const std::string bytes = saved(castle::UqKvCache<T>({.d = d, .dv = dv}));
    constexpr bool is_little = std::endian::native == std::endian::little;
    EXPECT_EQ(forged(bytes, place::byte_order, is_little ? 1 : 2), bytes);
    EXPECT_EQ(message<std::runtime_error>([&] { loaded<T>(forged(bytes, place::byte_order, is_little ? 2 : 1)); }),
              "castle::load: the saved cache has the bytes of its elements in another order");
}

TYPED_TEST(Save, SaysWhatSetsALayerApart) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const std::string bytes = saved(castle::Layer<T>(config, {.lookahead_window = 50}).make_cache());
    const auto rejection = [&](castle::LayerConfig other, const castle::Options& options) {
        std::istringstream in(bytes);
        return message<std::runtime_error>([&] { castle::Layer<T>(other, options).load_cache(in); });
    };
    EXPECT_EQ(rejection(config, {.lookahead_window = 51}),
              "castle::load: the saved cache has lookahead_window 50 but the layer has 51");
    castle::LayerConfig other = config;
    other.kv_heads = 1;
    EXPECT_EQ(rejection(other, {.lookahead_window = 50}),
              "castle::load: the saved cache has a number of key-value heads of 3 but the layer has 1");
    other = config;
    other.rotary->causal_v = true;
    EXPECT_EQ(rejection(other, {.lookahead_window = 50}),
              "castle::load: the saved cache has other rotary settings than the layer");
    EXPECT_EQ(rejection(config, {.scale = 0.5, .lookahead_window = 50}),
              "castle::load: the saved cache has scale 0.408248 but the layer has 0.5");
}

TYPED_TEST(Save, SaysWhenTheStreamCannotBeWritten) {
    castle::UqKvCache<TypeParam> cache({.d = d, .dv = dv});
    std::ostringstream out;
    out.setstate(std::ios::badbit);
    EXPECT_THROW(cache.save(out), std::runtime_error);
}

TYPED_TEST(Save, WithoutMemoryIsNoCache) {
    using T = TypeParam;
    Random random(3610);
    const Head<T> head = random_head<T>(random, {70, d, dv});
    castle::UqKvCache<T> cache({.d = d, .dv = dv});
    castle::extend(cache, head.input());
    std::istringstream in(saved(cache));
    bool failed = true;
    for (long successes = 0; failed; ++successes) {
        in.clear();
        in.seekg(0);
        failed = false;
        try {
            const Allocations::Failure failure(successes);
            cache = castle::UqKvCache<T>::load(in);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
        EXPECT_EQ(cache.size(), 70);
        EXPECT_TRUE(same_bits(cache.lookahead_keys(), run_at_once(head.input()).lookahead_keys));
        ASSERT_LT(successes, 1000);
    }
}

}  // namespace
