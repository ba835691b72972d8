// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

// Temporal causal discovery (arXiv:2508.15928, and its relatives CausalFormer, arXiv:2406.16708, and arXiv:2601.05647):
// which variable moves which, and after how long, from the gradients of a model that forecasts all of them.
//
//     S_{j -> i}(l) = mean over windows of |d xhat_{i,t} / d x_{j,t-l}|
//
// The strength of a link j -> i is the largest score of its lags, and that lag is the link's. What counts as a link is
// said by a threshold, by the number of causes that an effect has, or by a null: the scores of series that have been
// shuffled in time, and so cause nothing.
//
// Functions on plain numbers: where gradients come from is up to the caller.
namespace castle {
inline namespace CASTLE_ABI {
namespace methods {

/// What `cause` was `lag` steps ago moves `effect`.
struct CausalLink {
    Index cause = 0;
    Index effect = 0;
    Index lag = 1;
    double strength = 0;

    bool operator==(const CausalLink&) const = default;
};

/// A score for every cause, effect and lag; 0 to begin with.
class CausalScores {
  public:
    /// For lags from `first_lag` to `last_lag`. Throws std::invalid_argument if there are no causes, no effects or no
    /// lags, or a lag is negative.
    CausalScores(Index causes, Index effects, Index first_lag, Index last_lag)
        : causes_(causes), effects_(effects), first_lag_(first_lag), last_lag_(last_lag) {
        detail::check_size(where, "causes", causes, 1);
        detail::check_size(where, "effects", effects, 1);
        detail::check_size(where, "first_lag", first_lag, 0);
        detail::check_size(where, "last_lag", last_lag, first_lag);
        if (double(causes) * double(effects) * double(lags()) > double(detail::most_tokens)) {
            detail::fail(where, "causes, effects and lags are ", causes, ", ", effects, " and ", lags(),
                         " but their product must not exceed ", detail::most_tokens);
        }
        scores_.assign(std::size_t(causes * effects * lags()), 0);
    }

    Index causes() const { return causes_; }
    Index effects() const { return effects_; }
    Index first_lag() const { return first_lag_; }
    Index last_lag() const { return last_lag_; }
    Index lags() const { return last_lag_ - first_lag_ + 1; }

    double& operator()(Index cause, Index effect, Index lag) { return scores_[place(cause, effect, lag)]; }
    double operator()(Index cause, Index effect, Index lag) const { return scores_[place(cause, effect, lag)]; }

    /// With the lag of the largest score, the shortest of equal ones.
    CausalLink link(Index cause, Index effect) const {
        CausalLink best{
            .cause = cause, .effect = effect, .lag = first_lag_, .strength = (*this)(cause, effect, first_lag_)};
        for (Index lag = first_lag_ + 1; lag <= last_lag_; ++lag) {
            const double score = (*this)(cause, effect, lag);
            if (score > best.strength) best = {cause, effect, lag, score};
        }
        return best;
    }
    double strength(Index cause, Index effect) const { return link(cause, effect).strength; }

    /// Those of `count` causes from `first` on. Throws std::invalid_argument if there are not as many.
    CausalScores causes_from(Index first, Index count) const {
        detail::check_slice("methods::CausalScores::causes_from", "scores", causes_, "causes", first, count);
        CausalScores part(count, effects_, first_lag_, last_lag_);
        std::copy_n(scores_.begin() + first * effects_ * lags(), std::ptrdiff_t(part.scores_.size()),
                    part.scores_.begin());
        return part;
    }

  private:
    static constexpr std::string_view where = "methods::CausalScores";

    std::size_t place(Index cause, Index effect, Index lag) const {
        return std::size_t((cause * effects_ + effect) * lags() + lag - first_lag_);
    }

    Index causes_, effects_, first_lag_, last_lag_;
    std::vector<double> scores_;
};

/// The means of what several forecasters say, for example of the same kind with other seeds: noise that is not in the
/// data averages out. Throws std::invalid_argument if there are none, or not all are for the same causes, effects and
/// lags.
inline CausalScores mean_scores(std::span<const CausalScores> all) {
    constexpr std::string_view where = "methods::mean_scores";
    detail::check_size(where, "the size of all", Index(all.size()), 1);
    CausalScores mean(all[0].causes(), all[0].effects(), all[0].first_lag(), all[0].last_lag());
    for (std::size_t i = 0; i < all.size(); ++i) {
        const CausalScores& own = all[i];
        if (own.causes() != mean.causes() || own.effects() != mean.effects() || own.first_lag() != mean.first_lag() ||
            own.last_lag() != mean.last_lag()) {
            detail::fail(where, "all[", Index(i), "] has ", own.causes(), " causes, ", own.effects(),
                         " effects and lags ", own.first_lag(), " to ", own.last_lag(), " but all[0] has ",
                         mean.causes(), ", ", mean.effects(), " and ", mean.first_lag(), " to ", mean.last_lag());
        }
        for (Index cause = 0; cause < mean.causes(); ++cause) {
            for (Index effect = 0; effect < mean.effects(); ++effect) {
                for (Index lag = mean.first_lag(); lag <= mean.last_lag(); ++lag) {
                    mean(cause, effect, lag) += own(cause, effect, lag) / double(all.size());
                }
            }
        }
    }
    return mean;
}

/// How a gradient counts in a score.
enum class GradientSize {
    absolute,  ///< `|g|`
    squared    ///< `g^2`, in which a few windows with a large gradient outweigh many
};

/// `S`, from the gradients of a forecaster in `windows` windows. `gradient_of(effect, window)` gives those of one
/// forecast, as something that views as `[lags, causes]`: in row `i` and column `j` its derivative with respect to
/// cause `j` at lag `first_lag + i`. It is called for all windows of one effect after the other, so a model may compute
/// many at once. Throws std::invalid_argument if there are no windows or a shape does not fit, and as CausalScores
/// does.
template <class GradientOf>
CausalScores causal_scores(Index causes, Index effects, Index first_lag, Index last_lag, Index windows,
                           const GradientOf& gradient_of, GradientSize size = GradientSize::absolute) {
    constexpr std::string_view where = "methods::causal_scores";
    CausalScores scores(causes, effects, first_lag, last_lag);
    detail::check_size(where, "windows", windows, 1);
    const detail::Extents expected{scores.lags(), causes};
    for (Index effect = 0; effect < effects; ++effect) {
        for (Index window = 0; window < windows; ++window) {
            const auto& gradient = gradient_of(effect, window);
            if (gradient.rows() != expected.rows || gradient.cols() != expected.cols) {
                detail::fail(where, "gradient_of(", effect, ", ", window, ") is ",
                             detail::Extents{gradient.rows(), gradient.cols()}, " but must be ", expected,
                             ", as lags and causes");
            }
            for (Index i = 0; i < scores.lags(); ++i) {
                for (Index j = 0; j < causes; ++j) {
                    const double g = double(gradient(i, j));
                    scores(j, effect, first_lag + i) +=
                        (size == GradientSize::squared ? g * g : std::abs(g)) / double(windows);
                }
            }
        }
    }
    return scores;
}

/// The links stronger than `threshold`, by effect and then by cause.
inline std::vector<CausalLink> links_above(const CausalScores& scores, double threshold) {
    std::vector<CausalLink> links;
    for (Index effect = 0; effect < scores.effects(); ++effect) {
        for (Index cause = 0; cause < scores.causes(); ++cause) {
            const CausalLink link = scores.link(cause, effect);
            if (link.strength > threshold) links.push_back(link);
        }
    }
    return links;
}

/// For every effect its `most` strongest causes, the strongest first, and of equal ones the first; those with a score
/// of 0 are none. Throws std::invalid_argument if `most` is negative.
inline std::vector<CausalLink> strongest_links(const CausalScores& scores, Index most) {
    detail::check_size("methods::strongest_links", "most", most, 0);
    std::vector<CausalLink> links;
    for (Index effect = 0; effect < scores.effects(); ++effect) {
        std::vector<CausalLink> own;
        for (Index cause = 0; cause < scores.causes(); ++cause) {
            if (scores.strength(cause, effect) > 0) own.push_back(scores.link(cause, effect));
        }
        std::ranges::stable_sort(own, std::greater<>(), &CausalLink::strength);
        own.resize((std::min)(own.size(), std::size_t(most)));
        links.insert(links.end(), own.begin(), own.end());
    }
    return links;
}

/// Series that cause nothing, `[times, variables]`: each is one of `series`, begun at a random time and continued from
/// its start where it ends. It keeps its own values and their order, but not its place in time, so nothing follows from
/// it. Given to a forecaster beside the series themselves, its scores show what scores come of nothing.
///
/// A series is moved by a tenth to nine tenths of its length. Throws std::invalid_argument if there are fewer than 10
/// times.
template <ComputeScalar T>
Matrix<T> shuffled_in_time(ConstMatrixView<T> series, std::uint64_t seed) {
    const Index times = series.rows(), least = times / 10;
    detail::check_size("methods::shuffled_in_time", "the rows of series", times, 10);
    std::mt19937_64 bits(seed);
    Matrix<T> shuffled(times, series.cols());
    for (Index j = 0; j < series.cols(); ++j) {
        const Index moved = least + Index(bits() % std::uint64_t(times - 2 * least + 1));
        for (Index t = 0; t < times; ++t) shuffled(t, j) = series.row((t + moved) % times)[j];
    }
    return shuffled;
}
template <class M>
Matrix<typename M::Scalar> shuffled_in_time(const Eigen::PlainObjectBase<M>& series, std::uint64_t seed) {
    return shuffled_in_time(ConstMatrixView<typename M::Scalar>(series.derived()), seed);
}

/// The strength that the strongest of `links` links, none of which is real, exceeds with a probability of `level`, if
/// strengths of such links are distributed as those in `null`. Their logarithms are taken to be normal: with few links
/// in the null, a quantile of so small a tail cannot be counted off. With `m` and `s` their mean and deviation it is
///
///     exp(m + z s),    z the 1 - level / links quantile of the standard normal distribution
///
/// Strengths of 0, of links that a forecaster cannot use, are left out. Throws std::invalid_argument if `level` is not
/// within (0, 1), `links` is not positive, or fewer than two strengths are left.
inline double null_threshold(std::span<const double> null, Index links, double level) {
    constexpr std::string_view where = "methods::null_threshold";
    detail::check_size(where, "links", links, 1);
    if (!(level > 0 && level < 1)) detail::fail(where, "level is ", level, " but must be above 0 and below 1");
    double mean = 0, squares = 0;
    Index count = 0;
    for (const double strength : null) {
        if (!(strength > 0)) continue;
        // The mean so far and the sum of squares around it.
        const double x = std::log(strength), step = x - mean;
        mean += step / double(++count);
        squares += step * (x - mean);
    }
    if (count < 2) detail::fail(where, "null has ", count, " strengths above 0 but must have at least 2");
    const double tail = level / double(links);
    double below = -10, above = 40;  // of z, whose tail falls
    for (int i = 0; i < 100; ++i) {
        const double z = (below + above) / 2;
        (std::erfc(z / std::sqrt(2.0)) / 2 > tail ? below : above) = z;
    }
    return std::exp(mean + above * std::sqrt(squares / double(count - 1)));
}

/// The strengths of all links, by cause and then by effect.
inline std::vector<double> strengths_of(const CausalScores& scores) {
    std::vector<double> strengths;
    for (Index cause = 0; cause < scores.causes(); ++cause) {
        for (Index effect = 0; effect < scores.effects(); ++effect) strengths.push_back(scores.strength(cause, effect));
    }
    return strengths;
}

/// The links that are stronger than those of series that cause nothing: if none of `scores` were real, one or more
/// would be found with a probability of `level`. `null` has strengths of shuffled series, see `shuffled_in_time`, the
/// more the better. Throws as `null_threshold` does.
inline std::vector<CausalLink> links_against_null(const CausalScores& scores, std::span<const double> null,
                                                  double level = 0.05) {
    return links_above(scores, null_threshold(null, scores.causes() * scores.effects(), level));
}

/// How a found graph compares with the true one. Links are pairs of cause and effect; lags are compared of those that
/// are in both. A share of nothing is 1.
struct GraphMatch {
    Index right = 0;       ///< links in both
    Index surplus = 0;     ///< found only
    Index missed = 0;      ///< true only
    Index right_lags = 0;  ///< in both, with the same lag

    double precision() const { return share(right, right + surplus); }
    double recall() const { return share(right, right + missed); }
    /// `2 precision recall / (precision + recall)`
    double f1() const { return share(2 * right, 2 * right + surplus + missed); }
    double lags() const { return share(right_lags, right); }

  private:
    static double share(Index part, Index whole) { return whole == 0 ? 1 : double(part) / double(whole); }
};

/// Throws std::invalid_argument if a graph has a link twice.
inline GraphMatch match_graphs(std::span<const CausalLink> found, std::span<const CausalLink> truth) {
    const auto check_links = [](std::string_view name, std::span<const CausalLink> links) {
        std::set<std::pair<Index, Index>> pairs;
        for (const CausalLink& link : links) {
            if (pairs.insert({link.cause, link.effect}).second) continue;
            detail::fail("methods::match_graphs", name, " has the link from ", link.cause, " to ", link.effect,
                         " more than once");
        }
    };
    check_links("found", found);
    check_links("truth", truth);
    GraphMatch match;
    for (const CausalLink& link : found) {
        const auto same = std::ranges::find_if(
            truth, [&](const CausalLink& t) { return t.cause == link.cause && t.effect == link.effect; });
        match.right += same != truth.end() ? 1 : 0;
        match.right_lags += same != truth.end() && same->lag == link.lag ? 1 : 0;
    }
    match.surplus = Index(found.size()) - match.right;
    match.missed = Index(truth.size()) - match.right;
    return match;
}

}  // namespace methods
}  // namespace CASTLE_ABI
}  // namespace castle
