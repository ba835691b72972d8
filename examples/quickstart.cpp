// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include <castle/castle.hpp>

int main() {
    using Matrix = castle::Matrix<float>;
    const castle::Index length = 300, prompt = 200, d = 64;
    const Matrix qc = Matrix::Random(length, d), kc = Matrix::Random(length, d), vc = Matrix::Random(length, d);
    const Matrix qu = Matrix::Random(length, d), ku = Matrix::Random(length, d), vu = Matrix::Random(length, d);
    const castle::Input<float> input{.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};

    const Matrix out = castle::parallel(input);          // the whole sequence at once
    const Matrix definition = castle::recurrent(input);  // the paper's equations, token by token

    castle::UqKvCache<float> cache({.d = d, .dv = d});  // a prompt, then one token after the other
    Matrix decoded(length, d);
    castle::extend(cache, input.tokens(0, prompt), decoded.topRows(prompt));
    for (castle::Index t = prompt; t < length; ++t) {
        castle::extend(cache, input.tokens(t, 1), decoded.middleRows(t, 1));
    }

    std::cout << "Largest difference between the parallel form and\n"
              << "  the definition: " << (out - definition).cwiseAbs().maxCoeff() << "\n"
              << "  prefill and decoding: " << (out - decoded).cwiseAbs().maxCoeff() << "\n";
}
