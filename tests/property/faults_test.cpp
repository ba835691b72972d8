// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <istream>
#include <limits>
#include <map>
#include <new>
#include <ostream>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// All that a server does with caches, in which for every n the n-th allocation fails: the call that it fails in leaves
// every cache as it was, and goes well the second time.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

constexpr Index vocabulary = 40;

// What a head and a layer call the same things.
template <class T>
class OfHead {
  public:
    using Cache = castle::UqKvCache<T>;

    explicit OfHead(Index window) : options_{.lookahead_window = window}, tokens_({vocabulary, d, dv}) {
        Random random(3510);
        for (Matrix<T>* m : tokens_.all()) fill_normal(random, *m);
    }

    static Index columns() { return dv; }
    Cache make() const { return Cache({.d = d, .dv = dv}, options_); }
    Cache load(std::istream& in) const { return Cache::load(in); }
    Head<T> input(const std::vector<Index>& text) const {
        Head<T> head({Index(text.size()), d, dv});
        Head<T> from = tokens_;
        for (std::size_t m = 0; m < 6; ++m) {
            for (std::size_t t = 0; t < text.size(); ++t) head.all()[m]->row(Index(t)) = from.all()[m]->row(text[t]);
        }
        return head;
    }
    void extend(Cache& cache, const Head<T>& head, Matrix<T>& out) const { castle::extend(cache, head.input(), out); }
    void extend(const std::vector<Cache*>& caches, const Head<T>& head, Matrix<T>& out) const {
        castle::extend(caches, head.input(), out);
    }
    static Matrix<T> lookahead_keys(const Cache& cache) { return cache.lookahead_keys(); }

  private:
    static constexpr Index d = 3, dv = 2;

    castle::Options options_;
    Head<T> tokens_;
};

template <class T>
class OfLayer {
  public:
    using Cache = castle::MultiHeadCache<T>;

    explicit OfLayer(Index window)
        : layer_({.d_model = d_model, .heads = 2, .d_head = 4, .rotary = castle::Rotary{}},
                 {.lookahead_window = window}),
          tokens_(vocabulary, d_model) {
        Random random(3520);
        fill_normal(random, tokens_);
    }

    static Index columns() { return d_model; }
    Cache make() const { return layer_.make_cache(); }
    Cache load(std::istream& in) const { return layer_.load_cache(in); }
    Matrix<T> input(const std::vector<Index>& text) const {
        Matrix<T> x(Index(text.size()), d_model);
        for (std::size_t t = 0; t < text.size(); ++t) x.row(Index(t)) = tokens_.row(text[t]);
        return x;
    }
    void extend(Cache& cache, const Matrix<T>& x, Matrix<T>& y) const { layer_.extend(cache, x, y); }
    void extend(const std::vector<Cache*>& caches, const Matrix<T>& x, Matrix<T>& y) const {
        layer_.extend(caches, x, y);
    }
    static Matrix<T> lookahead_keys(const Cache& cache) { return cache.lookahead_keys(1); }

  private:
    static constexpr Index d_model = 5;

    castle::MultiHeadCastle<T> layer_;
    Matrix<T> tokens_;
};

// A stream of bytes that takes no memory when it is written to.
class Bytes : public std::streambuf {
  public:
    Bytes() : bytes_(1 << 17) {
        setp(bytes_.data(), bytes_.data() + bytes_.size());
        rewind();
    }
    void rewind() { setg(bytes_.data(), bytes_.data(), bytes_.data() + bytes_.size()); }

  private:
    std::vector<char> bytes_;
};

// What a text gives alone. Every session has the same texts.
template <class Kind>
class Alone {
  public:
    using T = typename Kind::Cache::value_type;

    explicit Alone(const Kind& kind) : kind_(kind) {}

    const Outcome<T>& operator()(const std::vector<Index>& tokens) {
        const auto [place, is_new] = outcomes_.try_emplace(tokens);
        if (is_new) {
            typename Kind::Cache cache = kind_.make();
            Matrix<T> out(Index(tokens.size()), Kind::columns());
            kind_.extend(cache, kind_.input(tokens), out);
            place->second = {.output = out, .lookahead_keys = Kind::lookahead_keys(cache)};
        }
        return place->second;
    }

  private:
    const Kind& kind_;
    std::map<std::vector<Index>, Outcome<T>> outcomes_;
};

template <class Kind>
class Session {
  public:
    using Cache = typename Kind::Cache;

    // The allocation after `successes` of them fails.
    Session(const Kind& kind, Alone<Kind>& alone, long successes) : kind_(kind), alone_(alone), left_(successes) {
        texts_.reserve(8);
    }

    bool has_failed() const { return has_failed_; }

    void make() {
        attempt([&] { texts_.push_back({kind_.make(), {}}); });
    }
    void fork(std::size_t i) {
        attempt([&] { texts_.push_back({texts_[i].cache.fork(), texts_[i].tokens}); });
    }
    void drop(std::size_t i) { texts_.erase(texts_.begin() + std::ptrdiff_t(i)); }
    void clear(std::size_t i) {
        attempt([&] { texts_[i].cache.clear(); });
        texts_[i].tokens.clear();
    }
    void reserve(std::size_t i, Index tokens) {
        attempt([&] { texts_[i].cache.reserve(tokens); });
    }
    void rollback(std::size_t i, Index count) {
        attempt([&] { texts_[i].cache.rollback(count); });
        texts_[i].tokens.resize(texts_[i].tokens.size() - std::size_t(count));
    }
    void extend(std::size_t i, Index count) {
        const std::vector<Index> more = some_tokens(count);
        const auto input = kind_.input(more);
        Matrix<T> out(count, Kind::columns());
        attempt([&] { kind_.extend(texts_[i].cache, input, out); });
        texts_[i].tokens.insert(texts_[i].tokens.end(), more.begin(), more.end());
        const Matrix<T>& expected = alone_(texts_[i].tokens).output;
        EXPECT_TRUE(same_bits(out, Matrix<T>(expected.bottomRows(count)))) << count << " tokens onto text " << i;
    }
    void extend_all() {
        const std::vector<Index> row = some_tokens(Index(texts_.size()));
        const auto input = kind_.input(row);
        Matrix<T> out(Index(texts_.size()), Kind::columns());
        std::vector<Cache*> batch;
        for (Text& text : texts_) batch.push_back(&text.cache);
        attempt([&] { kind_.extend(batch, input, out); });
        for (std::size_t i = 0; i < texts_.size(); ++i) texts_[i].tokens.push_back(row[i]);
    }
    void save_and_load(std::size_t i) {
        Bytes bytes;
        std::ostream out(&bytes);
        attempt([&] { texts_[i].cache.save(out); });
        attempt([&] {
            bytes.rewind();
            std::istream in(&bytes);
            texts_.push_back({kind_.load(in), texts_[i].tokens});
        });
    }
    void expect_all() const {
        for (std::size_t i = 0; i < texts_.size(); ++i) {
            const Text& text = texts_[i];
            EXPECT_EQ(text.cache.size(), Index(text.tokens.size()));
            EXPECT_TRUE(same_bits(Kind::lookahead_keys(text.cache), alone_(text.tokens).lookahead_keys))
                << "text " << i;
        }
    }

  private:
    using T = typename Cache::value_type;
    struct Text {
        Cache cache;
        std::vector<Index> tokens;
    };

    std::vector<Index> some_tokens(Index count) {
        std::vector<Index> tokens;
        for (Index i = 0; i < count; ++i) tokens.push_back(random_.integer(0, vocabulary - 1));
        return tokens;
    }

    template <class Call>
    void attempt(const Call& call) {
        const long before = Allocations::count();
        bool fails = false;
        try {
            const Allocations::Failure failure(left_);
            call();
        } catch (const std::bad_alloc&) {
            fails = true;
        }
        if (!fails) {
            left_ -= Allocations::count() - before;
            return;
        }
        has_failed_ = true;
        left_ = std::numeric_limits<long>::max();
        expect_all();
        call();
    }

    const Kind& kind_;
    Alone<Kind>& alone_;
    long left_;
    bool has_failed_ = false;
    Random random_{3500};
    std::vector<Text> texts_;
};

template <class Kind>
void run_with_every_fault(Index window) {
    const Kind kind(window);
    Alone<Kind> alone(kind);
    long faults = 0;
    for (bool failed = true; failed; ++faults) {
        SCOPED_TRACE(describe("window ", window, ", ", faults, " allocations go well"));
        Session<Kind> session(kind, alone, faults);
        session.make();
        session.extend(0, 70);
        session.reserve(0, 130);
        for (int i = 0; i < 30; ++i) session.extend(0, 1);
        session.fork(0);
        session.extend(0, 40);
        session.extend(1, 9);
        session.rollback(0, 50);
        for (int i = 0; i < 40; ++i) session.extend_all();
        session.save_and_load(1);
        session.fork(2);
        session.drop(1);
        session.rollback(2, 30);  // of blocks that the fork shares
        for (int i = 0; i < 30; ++i) session.extend_all();
        session.clear(0);
        session.extend(0, 66);
        session.fork(0);
        session.drop(0);
        session.extend(2, 30);
        session.expect_all();
        failed = session.has_failed();
        if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GT(faults, 50) << "hardly anything was made to fail";
    ::testing::Test::RecordProperty("faults", std::to_string(faults - 1));
}

template <class T>
class Faults : public ::testing::Test {};
TYPED_TEST_SUITE(Faults, support::Scalars);

TYPED_TEST(Faults, LeaveEveryCacheOfAHeadAsItWas) { run_with_every_fault<OfHead<TypeParam>>(castle::unlimited); }
TYPED_TEST(Faults, LeaveEveryCacheOfAHeadWithAWindowAsItWas) { run_with_every_fault<OfHead<TypeParam>>(40); }
TYPED_TEST(Faults, LeaveEveryCacheOfALayerAsItWas) { run_with_every_fault<OfLayer<TypeParam>>(castle::unlimited); }

}  // namespace
