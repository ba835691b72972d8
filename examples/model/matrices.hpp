// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <castle/layer_weights.hpp>
#include <castle/types.hpp>

// A model's weights are a struct of matrices that lists them by name. Gradients, and what an optimizer keeps, are the
// same struct once more.
namespace model {

using castle::Index;
using Matrix = castle::Matrix<float>;

struct NamedMatrix {
    std::string name;
    Matrix* matrix;
    bool decays = true;  // whether weight decay is for it
};

using NamedMatrices = std::vector<NamedMatrix>;

/// Appends the matrices that an attention layer has.
inline void append(NamedMatrices& all, const std::string& prefix, castle::LayerWeights<float>& weights) {
    weights.for_each([&](std::string_view name, Matrix& m) { all.push_back({prefix + "." + std::string(name), &m}); });
}

/// Weights of the same shapes, all 0.
template <class Weights>
Weights zeros_like(const Weights& weights) {
    Weights zeros = weights;
    for (const NamedMatrix& m : zeros.matrices()) m.matrix->setZero();
    return zeros;
}

/// Numbers that are trained.
template <class Weights>
Index parameters(Weights weights) {
    Index count = 0;
    for (const NamedMatrix& m : weights.matrices()) count += m.matrix->size();
    return count;
}

/// Calls f(pointer, n) for the elements [first, first + count) of all matrices, as if one followed the other in memory:
/// for those of each matrix in turn.
template <class F>
void for_elements(const NamedMatrices& matrices, Index first, Index count, const F& f) {
    for (const NamedMatrix& m : matrices) {
        const Index n = std::min(m.matrix->size() - first, count);
        if (n > 0) f(m.matrix->data() + first, n);
        first = std::max<Index>(first - m.matrix->size(), 0);
        count -= std::max<Index>(n, 0);
    }
}

template <class Weights>
void add(Weights& sum, Weights& part) {
    const NamedMatrices to = sum.matrices(), from = part.matrices();
    for (std::size_t i = 0; i < to.size(); ++i) *to[i].matrix += *from[i].matrix;
}

/// Normally distributed numbers by Box and Muller, since the standard's distribution is another one in every library.
inline Matrix normal_matrix(Index rows, Index cols, double deviation, std::mt19937_64& bits) {
    const auto unit = [&] { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; };
    return Matrix::NullaryExpr(rows, cols, [&](Index, Index) {
        const double radius = std::sqrt(-2 * std::log(unit()));
        return static_cast<float>(deviation * radius * std::cos(2 * std::numbers::pi * unit()));
    });
}

/// An integer within [0, count).
inline Index below(Index count, std::mt19937_64& bits) {
    return static_cast<Index>(bits() % static_cast<std::uint64_t>(count));
}

}  // namespace model
