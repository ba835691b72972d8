// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

// The definition of CASTLE as plain loops over plain vectors: an independent voice, which includes nothing of the
// library and nothing that the library includes. In double it says what is right; in float it says how much a plain
// evaluation in single precision would lose. Equation numbers are those of arXiv:2509.07301.
//
// A masked position is left out of its sum.
namespace oracle {

using Index = std::ptrdiff_t;

/// Row-major, `[rows, cols]`, zero at first.
template <class T>
class Rows {
  public:
    Rows() = default;
    Rows(Index rows, Index cols) : rows_(rows), cols_(cols), numbers_(static_cast<std::size_t>(rows * cols)) {}

    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    T& operator()(Index i, Index j) { return numbers_[static_cast<std::size_t>(i * cols_ + j)]; }
    T operator()(Index i, Index j) const { return numbers_[static_cast<std::size_t>(i * cols_ + j)]; }

  private:
    Index rows_ = 0;
    Index cols_ = 0;
    std::vector<T> numbers_;
};

/// The six projections: q, k, v of the causal (c) and of the lookahead (u) kind.
template <class T>
struct Head {
    Rows<T> qc, kc, vc;
    Rows<T> qu, ku, vu;

    Index length() const { return qc.rows(); }
    Index d() const { return qc.cols(); }
    Index dv() const { return vc.cols(); }
};

struct Settings {
    double scale;
    Index window = std::numeric_limits<Index>::max();
    bool silu = true;         // of s^U, in the scores
    bool causal_keys = true;  // whether s^C is in the scores

    /// Whether token s absorbs token j: s < j <= s + W (eq. 9).
    bool absorbs(Index s, Index j) const { return s < j && j - s <= window; }
};

inline Settings standard_settings(Index d, Index window = std::numeric_limits<Index>::max()) {
    return {.scale = 1 / std::sqrt(static_cast<double>(d)), .window = window};
}

template <class T>
T sigmoid(T x) {
    return 1 / (1 + std::exp(-x));
}

template <class T>
T silu(T x) {
    return x * sigmoid(x);
}

template <class T>
T dot(const Rows<T>& a, Index i, const Rows<T>& b, Index j) {
    T sum = 0;
    for (Index k = 0; k < a.cols(); ++k) sum += a(i, k) * b(j, k);
    return sum;
}

/// Every quantity of the definition. Row t of the scores and weights is what token t sees, its entries s <= t; the rest
/// of a row is 0 and means nothing.
template <class T>
struct Result {
    Rows<T> gates;             // [s, j], 0 where token s does not absorb token j
    Rows<T> lookahead_keys;    // U^L
    Rows<T> causal_scores;     // eq. 5
    Rows<T> lookahead_scores;  // eq. 6
    Rows<T> scores;            // s^C - SiLU(s^U), or what the settings make of it
    Rows<T> weights;           // eq. 7
    Rows<T> output;            // eq. 8
};

template <class T>
Rows<T> gates(const Head<T>& head, const Settings& settings) {
    const T scale = static_cast<T>(settings.scale);
    Rows<T> g(head.length(), head.length());
    for (Index s = 0; s < head.length(); ++s) {
        for (Index j = 0; j < head.length(); ++j) {
            if (settings.absorbs(s, j)) g(s, j) = sigmoid(scale * dot(head.qu, s, head.ku, j));
        }
    }
    return g;
}

/// U^t, `[t, d]`: u_s = sum of gate(s, j) v^U_j over the j that token s absorbs among the first t tokens (eq. 4).
template <class T>
Rows<T> lookahead_keys(const Head<T>& head, const Settings& settings, Index t) {
    const Rows<T> g = gates(head, settings);
    Rows<T> u(t, head.d());
    for (Index s = 0; s < t; ++s) {
        for (Index j = 0; j < t; ++j) {
            if (!settings.absorbs(s, j)) continue;
            for (Index k = 0; k < head.d(); ++k) u(s, k) += g(s, j) * head.vu(j, k);
        }
    }
    return u;
}

/// Row t of `weights` from row t of `scores`.
template <class T>
void softmax(const Rows<T>& scores, Index t, Rows<T>& weights) {
    T largest = scores(t, 0);
    for (Index s = 0; s <= t; ++s) largest = std::max(largest, scores(t, s));
    T sum = 0;
    for (Index s = 0; s <= t; ++s) sum += std::exp(scores(t, s) - largest);
    for (Index s = 0; s <= t; ++s) weights(t, s) = std::exp(scores(t, s) - largest) / sum;
}

/// Row t of `output`: the weights of the tokens up to t times their values.
template <class T>
void weighted_values(const Rows<T>& weights, const Rows<T>& values, Index t, Rows<T>& output) {
    for (Index c = 0; c < values.cols(); ++c) {
        T sum = 0;
        for (Index s = 0; s <= t; ++s) sum += weights(t, s) * values(s, c);
        output(t, c) = sum;
    }
}

/// The whole definition. The sums of eq. 4 are kept from token to token instead of begun anew: the same terms in the
/// same order.
template <class T>
Result<T> evaluate(const Head<T>& head, const Settings& settings) {
    const Index length = head.length();
    const Index d = head.d();
    const T scale = static_cast<T>(settings.scale);
    Result<T> r{.gates = gates(head, settings),
                .lookahead_keys = Rows<T>(length, d),
                .causal_scores = Rows<T>(length, length),
                .lookahead_scores = Rows<T>(length, length),
                .scores = Rows<T>(length, length),
                .weights = Rows<T>(length, length),
                .output = Rows<T>(length, head.dv())};
    Rows<T>& u = r.lookahead_keys;
    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < t; ++s) {
            if (!settings.absorbs(s, t)) continue;
            for (Index k = 0; k < d; ++k) u(s, k) += r.gates(s, t) * head.vu(t, k);
        }
        for (Index s = 0; s <= t; ++s) {
            r.causal_scores(t, s) = scale * dot(head.qc, t, head.kc, s);
            r.lookahead_scores(t, s) = scale * dot(head.qc, t, u, s);
            const T lookahead = r.lookahead_scores(t, s);
            r.scores(t, s) =
                (settings.causal_keys ? r.causal_scores(t, s) : 0) - (settings.silu ? silu(lookahead) : lookahead);
        }
        softmax(r.scores, t, r.weights);
        weighted_values(r.weights, head.vc, t, r.output);
    }
    return r;
}

/// Standard causal attention.
template <class T>
Rows<T> causal_attention(const Rows<T>& q, const Rows<T>& k, const Rows<T>& v, double scale) {
    Rows<T> scores(q.rows(), q.rows());
    Rows<T> weights(q.rows(), q.rows());
    Rows<T> output(q.rows(), v.cols());
    for (Index t = 0; t < q.rows(); ++t) {
        for (Index s = 0; s <= t; ++s) scores(t, s) = static_cast<T>(scale) * dot(q, t, k, s);
        softmax(scores, t, weights);
        weighted_values(weights, v, t, output);
    }
    return output;
}

}  // namespace oracle
