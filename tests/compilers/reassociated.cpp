// SPDX-License-Identifier: Apache-2.0
#include <castle/backward.hpp>
#include <castle/workspace.hpp>

#include "head.hpp"

// castle, compiled with options that let the compiler reassociate sums.
namespace compilers {
namespace {

template <class T>
castle::Matrix<T> matrix(const std::vector<double>& from, int rows, int cols) {
    castle::Matrix<T> m(rows, cols);
    for (castle::Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<T>(from[std::size_t(i)]);
    return m;
}

template <class T>
std::vector<double> elements(const castle::Matrix<T>& m) {
    return {m.data(), m.data() + m.size()};
}

template <class T>
Result attend(const Head& head, const std::vector<double>& d_out) {
    const int n = head.length, d = head.d, dv = head.dv;
    const auto qc = matrix<T>(head.qc, n, d), kc = matrix<T>(head.kc, n, d), vc = matrix<T>(head.vc, n, dv);
    const auto qu = matrix<T>(head.qu, n, d), ku = matrix<T>(head.ku, n, d), vu = matrix<T>(head.vu, n, d);
    const castle::Input<T> input{.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    const castle::Matrix<T> d_o = matrix<T>(d_out, n, dv);

    castle::Workspace<T> workspace({.d = d, .dv = dv});
    castle::Matrix<T> out(n, dv);
    castle::forward(workspace, input, out);
    const castle::Gradient<T> g = castle::backward(workspace, input, d_o);
    return {.out = elements(out),
            .gradient = {.length = n,
                         .d = d,
                         .dv = dv,
                         .qc = elements(g.causal.q),
                         .kc = elements(g.causal.k),
                         .vc = elements(g.causal.v),
                         .qu = elements(g.lookahead.q),
                         .ku = elements(g.lookahead.k),
                         .vu = elements(g.lookahead.v)}};
}

}  // namespace

Result attend_in_float(const Head& head, const std::vector<double>& d_out) { return attend<float>(head, d_out); }
Result attend_in_double(const Head& head, const std::vector<double>& d_out) { return attend<double>(head, d_out); }

}  // namespace compilers
