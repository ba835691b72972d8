// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>

#include "head.hpp"
#include "random.hpp"

// The outputs and gradients of the other unit against the definition, evaluated in double precision and without the
// options that the other unit is compiled with. Prints each error, and fails where one is too large.
namespace {

using compilers::Head;
using Elements = std::vector<double>;

double dot(const Elements& a, int row_a, const Elements& b, int row_b, int cols) {
    double sum = 0;
    for (int k = 0; k < cols; ++k) sum += a[std::size_t(row_a * cols + k)] * b[std::size_t(row_b * cols + k)];
    return sum;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Eqs. 3 to 8, token by token.
Elements outputs(const Head& head) {
    const int d = head.d, dv = head.dv;
    const double scale = 1 / std::sqrt(double(d));
    Elements u(head.ku.size()), out(head.vc.size());
    for (int t = 0; t < head.length; ++t) {
        for (int s = 0; s < t; ++s) {
            const double gate = sigmoid(scale * dot(head.qu, s, head.ku, t, d));
            for (int k = 0; k < d; ++k) u[std::size_t(s * d + k)] += gate * head.vu[std::size_t(t * d + k)];
        }
        Elements scores(std::size_t(t) + 1);
        for (int s = 0; s <= t; ++s) {
            const double lookahead = scale * dot(head.qc, t, u, s, d);
            scores[std::size_t(s)] = scale * dot(head.qc, t, head.kc, s, d) - lookahead * sigmoid(lookahead);
        }
        const double largest = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        for (int s = 0; s <= t; ++s) {
            for (int k = 0; k < dv; ++k) {
                out[std::size_t(t * dv + k)] += scores[std::size_t(s)] / sum * head.vc[std::size_t(s * dv + k)];
            }
        }
    }
    return out;
}

// The largest difference, in relation to the largest element.
double error_of(const Elements& got, const Elements& expected) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (!std::isfinite(got[i])) return INFINITY;
        difference = std::max(difference, std::abs(got[i] - expected[i]));
        size = std::max(size, std::abs(expected[i]));
    }
    return difference / size;
}

// How far the sum of the gradient's absolute elements is from what it must be: the derivative along their signs, here a
// difference quotient.
double gradient_error(Head head, Elements Head::*part, const Elements& gradient, const Elements& d_out) {
    constexpr double step = 1e-6;
    const Elements at = head.*part;
    double size = 0, derivative = 0;
    for (const double g : gradient) size += std::abs(g);
    for (const double side : {-1.0, 1.0}) {
        for (std::size_t i = 0; i < at.size(); ++i) {
            (head.*part)[i] = at[i] + side * step * (gradient[i] < 0 ? -1 : 1);
        }
        const Elements out = outputs(head);
        for (std::size_t i = 0; i < out.size(); ++i) derivative += side * d_out[i] * out[i] / (2 * step);
    }
    return std::isfinite(size) ? std::abs(size - derivative) / std::abs(derivative) : INFINITY;
}

bool is_small(const char* scalar, const char* name, double error, double largest) {
    std::printf("%s %s: error %.2g of at most %.2g\n", scalar, name, error, largest);
    return error <= largest;
}

}  // namespace

int main() {
    Head head{.length = 90, .d = 11, .dv = 7, .qc = {}, .kc = {}, .vc = {}, .qu = {}, .ku = {}, .vu = {}};
    compilers::Random random(1);
    const auto fill = [&](Elements& m, int cols) {
        m.resize(std::size_t(head.length * cols));
        for (double& x : m) x = 2 * random.uniform();
    };
    for (auto* m : {&head.qc, &head.kc, &head.qu, &head.ku, &head.vu}) fill(*m, head.d);
    Elements d_out;
    for (auto* m : {&head.vc, &d_out}) fill(*m, head.dv);

    const struct {
        const char* name;
        Elements Head::*part;
    } parts[] = {{"dQ^C", &Head::qc}, {"dK^C", &Head::kc}, {"dV^C", &Head::vc},
                 {"dQ^U", &Head::qu}, {"dK^U", &Head::ku}, {"dV^U", &Head::vu}};
    const Elements expected = outputs(head);
    bool right = true;
    const auto check = [&](const char* scalar, const compilers::Result& got, double largest) {
        right &= is_small(scalar, "out", error_of(got.out, expected), largest);
        for (const auto& [name, part] : parts) {
            right &= is_small(scalar, name, gradient_error(head, part, got.gradient.*part, d_out), largest);
        }
    };
    check("float", compilers::attend_in_float(head, d_out), 1e-5);
    check("double", compilers::attend_in_double(head, d_out), 1e-8);  // what a difference quotient is good for
    return right ? 0 : 1;
}
