// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model.hpp"

namespace language_model {

/// The byte at `place` in [0, 1) of the distribution softmax(logits / temperature); the most probable one where the
/// temperature is 0.
template <class Row>
char byte_at(double place, const Row& logits, double temperature) {
    Index best = 0;
    const float largest = logits.maxCoeff(&best);
    if (temperature == 0) return static_cast<char>(best);
    const Eigen::RowVectorXd weights = ((logits.array() - largest).template cast<double>() / temperature).exp();
    double left = place * weights.sum();
    for (Index i = 0; i < weights.size(); ++i) {
        left -= weights(i);
        if (left < 0) return static_cast<char>(i);
    }
    return static_cast<char>(best);
}

/// A model with the caches of a text, and what it has not read of it yet.
class Reader {
  public:
    Reader(const Model& model, const std::string& text, Index longest)
        : model_(&model), caches_(model.make_caches()), unread_(text) {
        for (auto& any : caches_) std::visit([&](auto& cache) { cache.reserve(longest); }, any);
    }

    void add(char byte) { unread_ += byte; }
    /// The logits after the last byte, and after those before it as far as they had not been read, [unread, bytes].
    Matrix read() {
        Matrix logits = model_->logits(unread_, caches_);
        unread_.clear();
        return logits;
    }
    /// Removes the last `count` bytes, read or not.
    void forget(Index count) {
        const Index unread = std::min(count, Index(unread_.size()));
        unread_.resize(unread_.size() - std::size_t(unread));
        for (auto& any : caches_) std::visit([&](auto& cache) { cache.rollback(count - unread); }, any);
    }

  private:
    const Model* model_;
    std::vector<Attention::Cache> caches_;
    std::string unread_;
};

/// What came of the caches, and at how many places a pass over everything at once finds the same byte the most
/// probable: products of one row round differently from those of many, so a byte that is as good within that counts.
struct Written {
    std::string bytes;
    Index same = 0;
    Index passes = 0;  // of the model
};

/// Writes `count` bytes on from a prompt through the caches: take(byte) gets each as it comes. Where there is a
/// `draft`, a smaller model, it guesses some bytes ahead, the model reads them in one pass, and forgets those after the
/// first that it would not have written itself: what it writes is the same.
template <class Take>
Written write_on(const Model& model, const Model* draft, const std::string& prompt, Index count, double temperature,
                 std::uint64_t seed, const Take& take) {
    constexpr Index most_guesses = 6;
    std::mt19937_64 random(seed);
    std::vector<double> places;  // of every byte in its distribution, whichever model draws it
    for (Index i = 0; i < count; ++i) places.push_back(static_cast<double>(random() >> 11) * 0x1p-53);

    const Index longest = Index(prompt.size()) + count;
    Reader reader(model, prompt, longest);
    std::optional<Reader> guesser;
    if (draft != nullptr) guesser.emplace(*draft, prompt, longest);
    Written written;
    std::vector<Index> best;
    while (Index(written.bytes.size()) < count) {
        const Index done = Index(written.bytes.size());
        const Index guesses = guesser ? std::min(most_guesses, count - done - 1) : 0;
        std::string guess;
        for (Index i = 0; i < guesses; ++i) {
            guess += byte_at(places[std::size_t(done + i)], guesser->read().bottomRows(1).row(0), temperature);
            reader.add(guess.back());
            guesser->add(guess.back());
        }
        const Matrix logits = reader.read().bottomRows(guesses + 1);
        ++written.passes;
        Index right = 0;
        while (true) {
            const auto row = logits.row(right);
            row.maxCoeff(&best.emplace_back());
            const char byte = byte_at(places[std::size_t(done + right)], row, temperature);
            written.bytes += byte;
            take(byte);
            if (right == guesses || byte != guess[std::size_t(right)]) break;
            ++right;
        }
        for (Reader* one : {&reader, guesser ? &*guesser : nullptr}) {
            if (one == nullptr) continue;
            one->forget(guesses - right);
            one->add(written.bytes.back());
        }
    }
    const Matrix at_once = model.logits(prompt + written.bytes);
    for (Index i = 0; i < count; ++i) {
        const auto row = at_once.row(Index(prompt.size()) - 1 + i);
        const float rounding = model.config().rounding() * row.cwiseAbs().maxCoeff();
        if (row.maxCoeff() - row(best[std::size_t(i)]) <= rounding) ++written.same;
    }
    return written;
}

}  // namespace language_model
