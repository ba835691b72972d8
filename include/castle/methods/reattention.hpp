// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/mask.hpp>
#include <castle/types.hpp>

// Causal attention tuning (CAT, arXiv:2509.01535): a training loss that draws attention to positions that are known to
// be causes of what a row predicts.
//
// Of a row whose visible keys are n1 causes and n0 others, `a1` and `a0` are the mean weights on the two kinds. Since a
// row's weights sum to 1, all that it takes is the mass `m` on the causes, which the forward pass gives and whose
// gradient the backward pass takes, see Output and OutputGradient; there is no `L x L` matrix:
//
//     a1 = m / n1,    a0 = (1 - m) / n0,    r = a1 / a0
//
//     castle::methods::Reattention tuning(length, causes);
//     castle::forward(workspace, input, {.out = out, .mass = mass, .mass_over = causes});
//     loss += weight * tuning.loss<float>(masses_of_all_layers, d_masses, weight);
//     castle::backward(workspace, input, {.out = d_out, .mass = d_mass}, gradient);
namespace castle {
inline namespace CASTLE_ABI {
namespace methods {

/// What a row with `r < alpha` adds to the loss; others add nothing.
enum class ReattentionForm {
    hinge,      ///< `alpha - r`
    log_ratio,  ///< `-log(1 + a1) / log(1 + a0)`, the default of the authors' code
    log_odds,   ///< `-log(1 + a1 / (1 + a0))`
    share       ///< `-a1 / (a1 + a0)`
};

struct ReattentionOptions {
    ReattentionForm form = ReattentionForm::hinge;
    double alpha = 2.0;
    /// Whether each head of each layer has a loss of its own, of which the mean is taken, rather than their mean mass.
    bool per_head = false;
};

/// The loss of one sequence.
class Reattention {
  public:
    /// For a sequence of `length` tokens: row `t` should look at the keys that `causes` shows it, among those that
    /// `seen`, the mask of the attention, shows. Rows that see only one of the two kinds do not count. Throws
    /// std::invalid_argument if `length` is negative, a mask has fewer rows, or `alpha` is not above 0.
    Reattention(Index length, const Mask& causes, const ReattentionOptions& options = {}, const Mask& seen = {})
        : options_(options) {
        detail::check_size(where, "length", length, 0);
        detail::check_mask_size(where, "causes", causes, length);
        detail::check_mask_size(where, "seen", seen, length);
        if (!(options.alpha > 0)) detail::fail(where, "options.alpha is ", options.alpha, " but must be above 0");
        counts_.resize(std::size_t(length));
        for (Index t = 0; t < length; ++t) {
            Counts& own = counts_[std::size_t(t)];
            for (Index p = 0; p * detail::panel_size < length; ++p) {
                const std::uint64_t visible =
                    detail::word_of(seen.rule(), t, p, length) & detail::range_word(0, length, p);
                const std::uint64_t of_causes = detail::word_of(causes.rule(), t, p, length);
                own.causes += std::popcount(visible & of_causes);
                own.others += std::popcount(visible & ~of_causes);
            }
            rows_ += own.are_both() ? 1 : 0;
        }
    }

    /// Rows that see keys of both kinds.
    Index rows() const { return rows_; }

    /// The mean loss of those rows, from the masses on the causes: one matrix `[L, heads]` a layer. Writes `weight`
    /// times its gradient to `d_masses`, in the same shapes, unless there are none. 0 where no row counts.
    ///
    /// Without `per_head` a row's mass is the mean over all heads of all layers. `O(L heads layers)` time. Sinks take
    /// mass from both kinds and count as others here. Throws std::invalid_argument if a shape does not fit.
    template <ComputeScalar T>
    double loss(std::span<const ConstMatrixView<T>> masses, std::span<const MatrixView<T>> d_masses = {},
                double weight = 1) const {
        check_shapes<T>(masses, d_masses);
        double heads = 0, sum = 0;
        for (const auto& layer : masses) heads += double(layer.cols());
        const double share = rows_ > 0 ? 1 / (heads * double(rows_)) : 0;
        for (Index t = 0; t < Index(counts_.size()); ++t) {
            const Counts& counts = counts_[std::size_t(t)];
            Term of_mean;
            if (!options_.per_head && counts.are_both()) {
                double mass = 0;
                for (const auto& layer : masses) {
                    for (Index h = 0; h < layer.cols(); ++h) mass += double(layer.row(t)[h]);
                }
                of_mean = term(mass / heads, counts);
            }
            for (std::size_t i = 0; i < masses.size(); ++i) {
                for (Index h = 0; h < masses[i].cols(); ++h) {
                    Term own = of_mean;
                    if (options_.per_head && counts.are_both()) own = term(double(masses[i].row(t)[h]), counts);
                    sum += share * own.value;
                    if (!d_masses.empty()) d_masses[i].row(t)[h] = static_cast<T>(weight * share * own.slope);
                }
            }
        }
        return sum;
    }

  private:
    static constexpr std::string_view where = "methods::Reattention";

    struct Counts {
        Index causes = 0;
        Index others = 0;

        bool are_both() const { return causes > 0 && others > 0; }
    };
    // What a row adds, and its derivative with respect to the mass.
    struct Term {
        double value = 0;
        double slope = 0;
    };

    Term term(double mass, const Counts& counts) const {
        const double a1 = mass / double(counts.causes), a0 = (1 - mass) / double(counts.others);
        const double d_a1 = 1 / double(counts.causes), d_a0 = -1 / double(counts.others);
        if (!(a1 < options_.alpha * a0)) return {};
        switch (options_.form) {
            case ReattentionForm::hinge:
                return {options_.alpha - a1 / a0, -(d_a1 * a0 - a1 * d_a0) / (a0 * a0)};
            case ReattentionForm::log_ratio: {
                const double above = std::log1p(a1), below = std::log1p(a0);
                return {-above / below, -(d_a1 / (1 + a1) * below - above * d_a0 / (1 + a0)) / (below * below)};
            }
            case ReattentionForm::log_odds: {
                const double odds = a1 / (1 + a0);
                return {-std::log1p(odds), -(d_a1 - odds * d_a0) / (1 + a0) / (1 + odds)};
            }
            case ReattentionForm::share: {
                const double both = a1 + a0;
                return {-a1 / both, -(d_a1 * a0 - a1 * d_a0) / (both * both)};
            }
        }
        return {};
    }

    template <ComputeScalar T>
    void check_shapes(std::span<const ConstMatrixView<T>> masses, std::span<const MatrixView<T>> d_masses) const {
        if (!d_masses.empty() && d_masses.size() != masses.size()) {
            detail::fail(where, "d_masses has ", Index(d_masses.size()), " matrices but masses has ",
                         Index(masses.size()));
        }
        for (std::size_t i = 0; i < masses.size(); ++i) {
            if (masses[i].rows() != Index(counts_.size())) {
                detail::fail(where, "masses[", Index(i), "] has ", masses[i].rows(), " rows but the sequence has ",
                             Index(counts_.size()), " tokens");
            }
            if (d_masses.empty()) continue;
            if (d_masses[i].rows() == masses[i].rows() && d_masses[i].cols() == masses[i].cols()) continue;
            detail::fail(where, "d_masses[", Index(i), "] is ", detail::extents_of(d_masses[i]), " but must be ",
                         detail::extents_of(masses[i]), ", as masses[", Index(i), "]");
        }
    }

    ReattentionOptions options_;
    std::vector<Counts> counts_;
    Index rows_ = 0;
};

}  // namespace methods
}  // namespace CASTLE_ABI
}  // namespace castle
