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
// every cache as it was, and succeeds the second time.
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

    explicit OfHead(Index window, castle::Shape shape = {.d = 3, .dv = 2})
        : options_{.lookahead_window = window}, shape_(shape), tokens_(vocabulary, shape) {
        Random random(3510);
        for (Matrix<T>* m : tokens_.all()) fill_normal(random, *m);
    }

    Index columns() const { return shape_.heads * shape_.dv; }
    Cache make() const { return Cache(shape_, options_); }
    Cache load(std::istream& in) const { return Cache::load(in); }
    Head<T> input(const std::vector<Index>& sequence) const {
        Head<T> head(Index(sequence.size()), shape_);
        Head<T> from = tokens_;
        for (std::size_t m = 0; m < 6; ++m) {
            for (std::size_t t = 0; t < sequence.size(); ++t) {
                head.all()[m]->row(Index(t)) = from.all()[m]->row(sequence[t]);
            }
        }
        return head;
    }
    void extend(Cache& cache, const Head<T>& head, Matrix<T>& out) const { castle::extend(cache, head.input(), out); }
    void extend(const std::vector<Cache*>& caches, const std::vector<Index>& counts, const Head<T>& head,
                Matrix<T>& out) const {
        castle::extend(caches, counts, head.input(), out);
    }
    static Matrix<T> lookahead_keys(const Cache& cache) { return all_lookahead_keys(cache); }

  private:
    castle::Options options_;
    castle::Shape shape_;
    Head<T> tokens_;
};

template <class T>
class OfLayer {
  public:
    using Cache = castle::LayerCache<T>;

    explicit OfLayer(Index window)
        : layer_({.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 4, .rotary = castle::Rotary{}},
                 {.lookahead_window = window}),
          tokens_(vocabulary, d_model) {
        Random random(3520);
        fill_normal(random, tokens_);
    }

    Index columns() const { return d_model; }
    Cache make() const { return layer_.make_cache(); }
    Cache load(std::istream& in) const { return layer_.load_cache(in); }
    Matrix<T> input(const std::vector<Index>& sequence) const {
        Matrix<T> x(Index(sequence.size()), d_model);
        for (std::size_t t = 0; t < sequence.size(); ++t) x.row(Index(t)) = tokens_.row(sequence[t]);
        return x;
    }
    void extend(Cache& cache, const Matrix<T>& x, Matrix<T>& y) const { layer_.extend(cache, x, y); }
    void extend(const std::vector<Cache*>& caches, const std::vector<Index>& counts, const Matrix<T>& x,
                Matrix<T>& y) const {
        layer_.extend(caches, counts, x, y);
    }
    static Matrix<T> lookahead_keys(const Cache& cache) { return cache.lookahead_keys(1); }

  private:
    static constexpr Index d_model = 5;

    castle::Layer<T> layer_;
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

// What a sequence gives alone. Every session has the same sequences.
template <class Kind>
class Alone {
  public:
    using T = typename Kind::Cache::value_type;

    explicit Alone(const Kind& kind) : kind_(kind) {}

    const Outcome<T>& operator()(const std::vector<Index>& tokens) {
        const auto [place, is_new] = outcomes_.try_emplace(tokens);
        if (is_new) {
            typename Kind::Cache cache = kind_.make();
            Matrix<T> out(Index(tokens.size()), kind_.columns());
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
        sequences_.reserve(8);
    }

    bool has_failed() const { return has_failed_; }

    void make() {
        attempt([&] { sequences_.push_back({kind_.make(), {}}); });
    }
    void fork(std::size_t i) {
        attempt([&] { sequences_.push_back({sequences_[i].cache.fork(), sequences_[i].tokens}); });
    }
    void drop(std::size_t i) { sequences_.erase(sequences_.begin() + std::ptrdiff_t(i)); }
    void clear(std::size_t i) {
        attempt([&] { sequences_[i].cache.clear(); });
        sequences_[i].tokens.clear();
    }
    void reserve(std::size_t i, Index tokens) {
        attempt([&] { sequences_[i].cache.reserve(tokens); });
    }
    void rollback(std::size_t i, Index count) {
        attempt([&] { sequences_[i].cache.rollback(count); });
        sequences_[i].tokens.resize(sequences_[i].tokens.size() - std::size_t(count));
    }
    void extend(std::size_t i, Index count) {
        const std::vector<Index> more = some_tokens(count);
        const auto input = kind_.input(more);
        Matrix<T> out(count, kind_.columns());
        attempt([&] { kind_.extend(sequences_[i].cache, input, out); });
        sequences_[i].tokens.insert(sequences_[i].tokens.end(), more.begin(), more.end());
        const Matrix<T>& expected = alone_(sequences_[i].tokens).output;
        EXPECT_TRUE(same_bits(out, Matrix<T>(expected.bottomRows(count)))) << count << " tokens onto sequence " << i;
    }
    // A token onto each.
    void extend_all() { extend_all(one_by_one(Index(sequences_.size()))); }
    // counts[i] tokens onto sequence i.
    void extend_all(const std::vector<Index>& counts) {
        const std::vector<Index> more = some_tokens(total(counts));
        const auto input = kind_.input(more);
        Matrix<T> out(Index(more.size()), kind_.columns());
        std::vector<Cache*> batch;
        for (Sequence& sequence : sequences_) batch.push_back(&sequence.cache);
        attempt([&] { kind_.extend(batch, counts, input, out); });
        Index first = 0;
        for (std::size_t i = 0; i < sequences_.size(); ++i) {
            std::vector<Index>& tokens = sequences_[i].tokens;
            tokens.insert(tokens.end(), more.begin() + first, more.begin() + first + counts[i]);
            EXPECT_TRUE(same_bits(Matrix<T>(out.middleRows(first, counts[i])),
                                  Matrix<T>(alone_(tokens).output.bottomRows(counts[i]))))
                << counts[i] << " of " << more.size() << " tokens onto sequence " << i;
            first += counts[i];
        }
    }
    void save_and_load(std::size_t i) {
        Bytes bytes;
        std::ostream out(&bytes);
        attempt([&] { sequences_[i].cache.save(out); });
        attempt([&] {
            bytes.rewind();
            std::istream in(&bytes);
            sequences_.push_back({kind_.load(in), sequences_[i].tokens});
        });
    }
    void expect_all() const {
        for (std::size_t i = 0; i < sequences_.size(); ++i) {
            const Sequence& sequence = sequences_[i];
            EXPECT_EQ(sequence.cache.size(), Index(sequence.tokens.size()));
            EXPECT_TRUE(same_bits(Kind::lookahead_keys(sequence.cache), alone_(sequence.tokens).lookahead_keys))
                << "sequence " << i;
        }
    }

  private:
    using T = typename Cache::value_type;
    struct Sequence {
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
    std::vector<Sequence> sequences_;
};

template <class Kind>
void run_with_every_fault(const Kind& kind) {
    Alone<Kind> alone(kind);
    long faults = 0;
    for (bool failed = true; failed; ++faults) {
        SCOPED_TRACE(describe(faults, " allocations go well"));
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
        session.extend_all({1, 0, 140});
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

TYPED_TEST(Faults, LeaveEveryCacheOfAHeadAsItWas) { run_with_every_fault(OfHead<TypeParam>(castle::unlimited)); }
TYPED_TEST(Faults, LeaveEveryCacheOfAHeadWithAWindowAsItWas) { run_with_every_fault(OfHead<TypeParam>(40)); }
TYPED_TEST(Faults, LeaveEveryCacheOfGroupedHeadsAsItWas) {
    run_with_every_fault(OfHead<TypeParam>(40, {.d = 3, .dv = 2, .heads = 4, .kv_heads = 2}));
}
TYPED_TEST(Faults, LeaveEveryCacheOfALayerAsItWas) { run_with_every_fault(OfLayer<TypeParam>(castle::unlimited)); }

}  // namespace
