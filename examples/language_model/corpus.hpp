// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "../model/matrices.hpp"
#include "../support/bad_input.hpp"
#include "../support/fingerprint.hpp"
#include "../support/read_file.hpp"
#include "config.hpp"

namespace language_model {

/// As many of a text's sequences as there are.
inline constexpr Index all = Index(1) << 40;

/// A text, of which the last tenth is for validation.
class Corpus {
  public:
    Corpus(const std::string& path, Index context) : text_(read_file(path, most_bytes + 1)), context_(context) {
        if (static_cast<Index>(text_.size()) > most_bytes) {
            throw BadInput(fmt::format("\"{}\" has more than {} bytes", path, most_bytes));
        }
        const Index least = 10 * (context + 1);
        if (static_cast<Index>(text_.size()) < least) {
            throw BadInput(fmt::format("\"{}\" has {} bytes but a context of {} needs at least {}", path, text_.size(),
                                       context, least));
        }
    }

    std::string_view training() const { return std::string_view(text_).substr(0, text_.size() / 10 * 9); }
    std::string_view validation() const { return std::string_view(text_).substr(text_.size() / 10 * 9); }

    /// The sequences of a step, of context + 1 bytes each: the same for a seed and step, whatever came before.
    std::vector<std::string_view> batch(Index size, std::uint64_t seed, Index step) const {
        std::seed_seq mixed{seed, static_cast<std::uint64_t>(step)};
        std::mt19937_64 random(mixed);
        std::vector<std::string_view> sequences;
        const std::string_view text = training();
        for (Index i = 0; i < size; ++i) {
            const Index starts = static_cast<Index>(text.size()) - context_;
            sequences.push_back(text.substr(std::size_t(model::below(starts, random)), std::size_t(context_ + 1)));
        }
        return sequences;
    }

    /// The validation text in sequences that overlap by the byte that one predicts last and the next reads first, at
    /// most `most` of them, spread evenly.
    std::vector<std::string_view> validation_sequences(Index most) const {
        const std::string_view text = validation();
        const Index whole = (static_cast<Index>(text.size()) - 1) / context_;
        const Index count = std::min(whole, most);
        std::vector<std::string_view> sequences;
        for (Index i = 0; i < count; ++i) {
            sequences.push_back(text.substr(std::size_t(i * whole / count * context_), std::size_t(context_ + 1)));
        }
        return sequences;
    }

    /// To tell one text from another.
    std::string fingerprint() const { return fmt::format("{:016x}", fingerprint_of(text_)); }

  private:
    static constexpr Index most_bytes = Index(1) << 32;

    std::string text_;
    Index context_;
};

}  // namespace language_model
