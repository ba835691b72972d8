// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

// LeaF, learning to focus (arXiv:2506.07851): distillation without the tokens that mislead the student.
//
// Of teacher and student, `g_i` is the norm of the gradient of the mean loss over the answer with respect to the
// embedding of token `i` of the instruction. Both are normalised to [0, 1] over the instruction, and so is their
// difference `D = g^T - g^S`. Where `D` is small the student is far more sensitive than the teacher: a confounder. Runs
// of them are spans; each span that is removed gives a counterfactual example, on which the student is to agree with
// the teacher as well:
//
//     lambda KL(teacher || student)(X) + (1 - lambda) KL(teacher || student)(X without a span)
//
// Functions on plain numbers: where gradients and losses come from is up to the caller.
namespace castle {
inline namespace CASTLE_ABI {
namespace methods {

/// Tokens `[begin, end)`.
struct TokenSpan {
    Index begin = 0;
    Index end = 0;

    bool operator==(const TokenSpan&) const = default;
};

/// `g`: the Euclidean norm of each row of `[L, d_model]`, the gradients of the embeddings.
template <ComputeScalar T>
std::vector<double> gradient_norms(ConstMatrixView<T> d_embeddings) {
    std::vector<double> norms;
    for (Index i = 0; i < d_embeddings.rows(); ++i) {
        norms.push_back(d_embeddings.map().row(i).template cast<double>().stableNorm());
    }
    return norms;
}
template <class M>
std::vector<double> gradient_norms(const Eigen::PlainObjectBase<M>& d_embeddings) {
    return gradient_norms(ConstMatrixView<typename M::Scalar>(d_embeddings.derived()));
}

/// `(x - smallest) / (largest - smallest)`; zeros where all are equal.
inline std::vector<double> min_max_normalised(std::span<const double> x) {
    std::vector<double> y(x.size(), 0);
    if (x.empty()) return y;
    const auto [smallest, largest] = std::minmax_element(x.begin(), x.end());
    for (std::size_t i = 0; i < x.size() && *largest > *smallest; ++i)
        y[i] = (x[i] - *smallest) / (*largest - *smallest);
    return y;
}

/// `D` of each token, from the norms of teacher and student: near 0 where the student alone is sensitive, near 1 where
/// the teacher alone is. Throws std::invalid_argument if the two have not as many tokens.
inline std::vector<double> gradient_difference(std::span<const double> teacher, std::span<const double> student) {
    if (teacher.size() != student.size()) {
        detail::fail("methods::gradient_difference", "teacher has ", Index(teacher.size()), " tokens but student has ",
                     Index(student.size()));
    }
    std::vector<double> difference = min_max_normalised(teacher);
    const std::vector<double> other = min_max_normalised(student);
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= other[i];
    return min_max_normalised(difference);
}

/// Which tokens are confounders: those with `D <= threshold`; the paper has 0.05 to 0.15. Throws std::invalid_argument
/// if `threshold` is not within [0, 1].
inline std::vector<bool> confounders_by_threshold(std::span<const double> difference, double threshold) {
    if (!(threshold >= 0 && threshold <= 1)) {
        detail::fail("methods::confounders_by_threshold", "threshold is ", threshold, " but must be within [0, 1]");
    }
    std::vector<bool> flags;
    for (const double d : difference) flags.push_back(d <= threshold);
    return flags;
}

/// The same for the share `quantile` of tokens with the smallest `D`, rounded down; of equal ones the first. The
/// authors' code has 0.05 and 0.10, and at most 0.5. Throws std::invalid_argument if it is not within [0, 0.5].
inline std::vector<bool> confounders_by_quantile(std::span<const double> difference, double quantile) {
    if (!(quantile >= 0 && quantile <= 0.5)) {
        detail::fail("methods::confounders_by_quantile", "quantile is ", quantile, " but must be within [0, 0.5]");
    }
    std::vector<std::size_t> order(difference.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return difference[a] < difference[b]; });
    std::vector<bool> flags(difference.size(), false);
    const std::size_t count = std::size_t(quantile * double(difference.size()));
    for (std::size_t i = 0; i < count; ++i) flags[order[i]] = true;
    return flags;
}

/// The runs of confounders, in order.
inline std::vector<TokenSpan> spans_of(const std::vector<bool>& flags) {
    std::vector<TokenSpan> spans;
    for (Index i = 0; i < Index(flags.size()); ++i) {
        if (!flags[std::size_t(i)]) continue;
        if (spans.empty() || spans.back().end != i) spans.push_back({i, i});
        spans.back().end = i + 1;
    }
    return spans;
}

/// The tokens without those of some spans, one for a counterfactual example or all of them. Throws
/// std::invalid_argument if a span is not within the tokens.
template <class Token>
std::vector<Token> without(std::span<const Token> tokens, std::type_identity_t<std::span<const TokenSpan>> spans) {
    const Index count = Index(tokens.size());
    std::vector<bool> removed(tokens.size(), false);
    for (const TokenSpan& span : spans) {
        if (span.begin < 0 || span.end < span.begin || span.end > count) {
            detail::fail("methods::without", "a span is [", span.begin, ", ", span.end, ") but there are ", count,
                         " tokens");
        }
        for (Index i = span.begin; i < span.end; ++i) removed[std::size_t(i)] = true;
    }
    std::vector<Token> left;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (!removed[i]) left.push_back(tokens[i]);
    }
    return left;
}

}  // namespace methods
}  // namespace CASTLE_ABI
}  // namespace castle
