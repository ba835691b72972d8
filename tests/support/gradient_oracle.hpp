// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "support/oracle.hpp"

// The gradients of CASTLE by the chain rule through the definition, as plain loops over every (t, s, j): what eqs. 3 to
// 8 say one step at a time, cubic in the length, and nothing of the library's blocks.
namespace oracle {

/// The cotangents of a head's six inputs, by the inputs' names.
template <class T>
using Gradient = Head<T>;

/// What sum(output * d_output) changes by with each input. With Terms::absolute every sum, differences among them,
/// takes the absolute values of its terms: how large the gradient would be if nothing cancelled, which is what rounding
/// errors are relative to.
enum class Terms { as_they_are, absolute };

template <class T>
Gradient<T> backward(const Head<T>& head, const Rows<T>& d_output, const Settings& settings,
                     Terms terms = Terms::as_they_are) {
    const Index length = head.length();
    const Index d = head.d();
    const T scale = static_cast<T>(settings.scale);
    const Result<T> r = evaluate(head, settings);
    Gradient<T> g{.qc = Rows<T>(length, d),
                  .kc = Rows<T>(length, d),
                  .vc = Rows<T>(length, head.dv()),
                  .qu = Rows<T>(length, d),
                  .ku = Rows<T>(length, d),
                  .vu = Rows<T>(length, d)};
    const auto term = [&](T x) { return terms == Terms::absolute ? std::abs(x) : x; };
    const auto product = [&](const Rows<T>& a, Index i, const Rows<T>& b, Index j) {
        T sum = 0;
        for (Index k = 0; k < a.cols(); ++k) sum += term(a(i, k) * b(j, k));
        return sum;
    };
    const auto add = [&](Rows<T>& to, Index i, T factor, const Rows<T>& from, Index j) {
        for (Index k = 0; k < to.cols(); ++k) to(i, k) += term(factor * from(j, k));
    };

    Rows<T> d_gates(length, length);
    for (Index t = 0; t < length; ++t) {
        T delta = 0;
        for (Index s = 0; s <= t; ++s) delta += r.weights(t, s) * product(d_output, t, head.vc, s);
        for (Index s = 0; s <= t; ++s) {
            add(g.vc, s, r.weights(t, s), d_output, t);
            const T d_score = r.weights(t, s) * (product(d_output, t, head.vc, s) + term(-delta));
            if (settings.causal_keys) {
                add(g.qc, t, scale * d_score, head.kc, s);
                add(g.kc, s, scale * d_score, head.qc, t);
            }

            const T x = r.lookahead_scores(t, s);
            const T slope = settings.silu ? sigmoid(x) * (1 + x * sigmoid(-x)) : 1;
            const T d_lookahead = term(-d_score * slope);
            for (Index j = s + 1; j <= t; ++j) {
                if (!settings.absorbs(s, j)) continue;
                d_gates(s, j) += d_lookahead * scale * product(head.qc, t, head.vu, j);
                add(g.qc, t, scale * d_lookahead * r.gates(s, j), head.vu, j);
                add(g.vu, j, scale * d_lookahead * r.gates(s, j), head.qc, t);
            }
        }
    }
    for (Index s = 0; s < length; ++s) {
        for (Index j = s + 1; j < length; ++j) {
            if (!settings.absorbs(s, j)) continue;
            const T d_logit = d_gates(s, j) * r.gates(s, j) * sigmoid(-scale * dot(head.qu, s, head.ku, j));
            add(g.qu, s, scale * d_logit, head.ku, j);
            add(g.ku, j, scale * d_logit, head.qu, s);
        }
    }
    return g;
}

}  // namespace oracle
