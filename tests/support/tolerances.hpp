// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include <gtest/gtest.h>

#include <castle/types.hpp>

#include "support/oracle.hpp"

// Every tolerance of the tests, each derived from the operands and the arithmetic, none found by trying. Every
// comparison is written so that a NaN fails it.
namespace support {

using castle::Matrix;
using oracle::Index;
using oracle::Rows;

/// The unit roundoff u: one operation, or one storing in 16 bits, is off by a factor within 1 +- u.
template <class T>
inline constexpr double unit_roundoff = std::numeric_limits<T>::epsilon() / 2;
template <>
inline constexpr double unit_roundoff<castle::bfloat16> = 0x1p-8;
template <>
inline constexpr double unit_roundoff<castle::half> = 0x1p-11;

/// n roundings one upon another are off by a factor within 1 +- gamma(n). A sum of n products, in whatever order and
/// with or without fused multiply-add, is therefore off by at most gamma(n) times the sum of the absolute products.
template <class T>
double gamma(double n) {
    return n * unit_roundoff<T> / (1 - n * unit_roundoff<T>);
}

// The exponential of the kernels is within 1.5 ulp, and an ulp is at most 2u of the number: 3 roundings.
inline constexpr double exp_ulps = 1.5;
inline constexpr double exp_roundings = 2 * exp_ulps;
// 1 / (1 + e^-x) and x / (1 + e^-x) add one rounding each for the sum and the quotient. The quotient's error cannot
// exceed the factor that the sum's has.
inline constexpr double sigmoid_roundings = exp_roundings + 2;
// The textbook forms multiply x by the quotient.
inline constexpr double silu_roundings = sigmoid_roundings + 1;

// sigmoid(x) (1 + x sigmoid(-x)): two sigmoids, the second with a product more, and its product with x added in one
// rounding and multiplied in another.
inline constexpr double silu_derivative_roundings = 2 * sigmoid_roundings + exp_roundings + 3;

// Largest slopes: of the sigmoid at 0; of SiLU near 2.4, where it is 1.0998.
inline constexpr double sigmoid_slope = 0.25;
inline constexpr double silu_slope = 1.1;

/// What underflow can cost. A single operation rounds a result below the normal numbers to a multiple of the smallest
/// denormal; the exponential gives 0 for everything below the normal numbers.
template <class T>
inline constexpr double denormal = std::numeric_limits<T>::denorm_min();
template <>
inline constexpr double denormal<castle::bfloat16> = 0x1p-133;
template <>
inline constexpr double denormal<castle::half> = 0x1p-24;
template <class T>
inline constexpr double smallest_normal = std::numeric_limits<T>::min();
/// Where e^-x overflows, the sigmoid, SiLU and its derivative are 0. The exponential of a float does so from 88.37 on,
/// and 88.37 e^-88.37 is 32 times the smallest normal number; of a double from 709.43 on, and it is 252 times.
template <class T>
inline constexpr double activation_underflow = 256 * smallest_normal<T>;

/// Whether row t reads what is stored of key s, as 16-bit elements are: the window has left the key's panel of 64
/// behind before the row's block of 32.
inline bool reads_stored_key(Index t, Index s, Index window) {
    const Index origin = t / 32 * 32;
    return window < origin && s / 64 < (origin - window) / 64;
}

/// The most that a computation in T may differ from the exact result `r`, for every quantity and every number of it. It
/// holds for every order of the sums, hence for the textbook forms as for the blocked ones. 16-bit scalars are
/// computed in float; a gate and an output are rounded once more, and a lookahead key once the window has left it
/// behind.
///
/// Where the processor has dot products of T, both factors of every product are rounded to it: besides what is stored,
/// scaled queries and lookahead keys, lookahead keys U wherever they are read, the triangle, and weights. Its sums may
/// take two roundings for each product, each as large as an ulp, and what is below the normal numbers is 0.
template <class Stored>
oracle::Result<double> error_bounds(const oracle::Head<double>& head, const oracle::Settings& settings,
                                    const oracle::Result<double>& r) {
    using T = castle::Compute<Stored>;
    constexpr bool is_narrow = !std::is_same_v<T, Stored>;
    constexpr bool has_rounded_factors = castle::detail::multiplies_pairs<Stored>;
    // Of n products a sum's roundings, and what underflow costs it; by how much a rounded factor is off.
    const auto sum = [](double n) { return gamma<T>(has_rounded_factors ? 4 * n : n); };
    constexpr double underflow_of_one = has_rounded_factors ? 2 * smallest_normal<T> : denormal<T>;
    constexpr double of_factor = has_rounded_factors ? unit_roundoff<Stored> : 0;
    const Index length = head.length();
    const Index d = head.d();
    const double u = unit_roundoff<T>;
    const double n_d = static_cast<double>(d);
    const double scale = std::abs(settings.scale);

    // scale a . b: d products; the scale itself and its product with a factor or the sum round once each. Where
    // scale a underflows, what is lost is multiplied with b.
    const auto logit_bound = [&](const Rows<double>& a, Index i, const Rows<double>& b, Index j) {
        double products = 0, magnitudes = 0;
        for (Index k = 0; k < d; ++k) {
            products += std::abs(a(i, k) * b(j, k));
            magnitudes += std::abs(a(i, k)) + std::abs(b(j, k));
        }
        return (of_factor + sum(n_d + 2) * (1 + of_factor)) * scale * products +
               underflow_of_one * (n_d + 2) * (1 + scale) * (1 + magnitudes);
    };

    oracle::Result<double> e{.gates = Rows<double>(length, length),
                             .lookahead_keys = Rows<double>(length, d),
                             .causal_scores = Rows<double>(length, length),
                             .lookahead_scores = Rows<double>(length, length),
                             .scores = Rows<double>(length, length),
                             .weights = Rows<double>(length, length),
                             .output = Rows<double>(length, head.dv())};

    // Gates: the slope of the sigmoid times the logit's error, and the sigmoid's own.
    for (Index s = 0; s < length; ++s) {
        for (Index j = s + 1; j < length && settings.absorbs(s, j); ++j) {
            e.gates(s, j) = std::min(1.0, sigmoid_slope * logit_bound(head.qu, s, head.ku, j) +
                                              gamma<T>(sigmoid_roundings) * r.gates(s, j) + smallest_normal<T>);
            if (is_narrow) e.gates(s, j) += unit_roundoff<Stored> * (r.gates(s, j) + e.gates(s, j)) + denormal<Stored>;
        }
    }

    // Of the lookahead keys after token t: by how much they are off for the gates' sake, and the absolute terms of
    // their sums.
    Rows<double> from_gates(length, d);
    Rows<double> absolute(length, d);
    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < t; ++s) {
            if (!settings.absorbs(s, t)) continue;
            for (Index k = 0; k < d; ++k) {
                const double v = std::abs(head.vu(t, k));
                from_gates(s, k) += e.gates(s, t) * v;
                absolute(s, k) += (r.gates(s, t) + e.gates(s, t)) * v;
            }
        }

        // Panels of keys, every one of which may rescale what came before, and the merge at the end: an exponential
        // and a product each.
        const double keys = static_cast<double>(t + 1);
        const double steps = 3 + keys / 64;
        const double softmax_roundings = steps * (exp_roundings + 1);

        double largest = -std::numeric_limits<double>::infinity();
        for (Index s = 0; s <= t; ++s) largest = std::max(largest, r.scores(t, s));
        double normaliser = 0;
        for (Index s = 0; s <= t; ++s) {
            const double absorbed = static_cast<double>(std::min(t - s, settings.window));

            e.causal_scores(t, s) = logit_bound(head.qc, t, head.kc, s);

            // scale q . U with n absorbed tokens is a sum of n d products of three. However it is bracketed, a product
            // goes through at most n + d additions, one more multiplication than a product of two has, and the scale.
            double inherited = 0, own = 0, q_size = 0;
            for (Index k = 0; k < d; ++k) {
                const double q = std::abs(head.qc(t, k));
                inherited += scale * q * from_gates(s, k);
                own += scale * q * absolute(s, k);
                q_size += q;
            }
            e.lookahead_scores(t, s) = inherited + sum(n_d + absorbed + 3) * own +
                                       underflow_of_one * (n_d + 2) * (absorbed + 2) * (1 + scale) * (1 + q_size);
            // A lookahead key, and where factors are rounded a query; a triangle's element is rounded but once.
            if (has_rounded_factors || (is_narrow && reads_stored_key(t, s, settings.window))) {
                const double roundings = has_rounded_factors ? 2 : 1;
                e.lookahead_scores(t, s) +=
                    gamma<Stored>(roundings) * (own + e.lookahead_scores(t, s)) + denormal<Stored> * scale * q_size;
            }

            const double silu = oracle::silu(r.lookahead_scores(t, s));
            const double before_subtraction = e.causal_scores(t, s) + silu_slope * e.lookahead_scores(t, s) +
                                              gamma<T>(silu_roundings) * std::abs(silu) + activation_underflow<T>;
            e.scores(t, s) = before_subtraction + u * (std::abs(r.scores(t, s)) + before_subtraction);

            // A weight before normalisation is off by a factor within e^(+-f): the score's error; the rounding of
            // score - largest, over the panels no more than that of the whole difference; and the steps above. f goes
            // into the weights matrix until the row's normaliser is known.
            const double f =
                e.scores(t, s) + u * (largest - r.scores(t, s) + 2 * e.scores(t, s)) + gamma<T>(softmax_roundings);
            e.weights(t, s) = f;
            normaliser += r.weights(t, s) * std::exp(f);
        }
        // The sum of the weights is off by a factor within e^(+-normaliser): above by that definition, below because
        // sum p e^-f >= 1 / sum p e^f. One more rounding each: every addition, and the division.
        normaliser = std::log(normaliser) + gamma<T>(keys + steps + 1);
        for (Index s = 0; s <= t; ++s) {
            const double p = r.weights(t, s);
            const double factor = e.weights(t, s) + normaliser;
            const double underflow = steps * smallest_normal<T>;  // the largest weight before normalisation is 1
            e.weights(t, s) = p * std::expm1(factor) + underflow;
            // The product with the values and the additions, t + 1 of them, and the rescaling.
            for (Index c = 0; c < head.dv(); ++c) {
                e.output(t, c) +=
                    (p * std::expm1(factor + sum(keys + steps + 1) + gamma<Stored>(of_factor > 0 ? 1 : 0)) +
                     underflow) *
                        std::abs(head.vc(s, c)) +
                    steps * underflow_of_one;
            }
        }
    }

    for (Index s = 0; s < length; ++s) {
        const double absorbed = static_cast<double>(std::min(length - 1 - s, settings.window));
        for (Index k = 0; k < d; ++k) {
            e.lookahead_keys(s, k) =
                from_gates(s, k) + sum(absorbed + 1) * absolute(s, k) + absorbed * underflow_of_one;
            if (is_narrow && reads_stored_key(length, s, settings.window)) {
                e.lookahead_keys(s, k) +=
                    unit_roundoff<Stored> * (absolute(s, k) + from_gates(s, k)) + denormal<Stored>;
            }
        }
    }
    for (Index t = 0; is_narrow && t < length; ++t) {
        for (Index c = 0; c < head.dv(); ++c) {
            e.output(t, c) += unit_roundoff<Stored> * (std::abs(r.output(t, c)) + e.output(t, c)) + denormal<Stored>;
        }
    }
    return e;
}

/// The largest of the bounds; a test that compares with a bound asserts with it that the bound says something.
inline double largest(const Rows<double>& bounds) {
    double most = 0;
    for (Index i = 0; i < bounds.rows(); ++i) {
        for (Index j = 0; j < bounds.cols(); ++j) most = std::max(most, bounds(i, j));
    }
    return most;
}

/// Which entries of a matrix a comparison looks at.
enum class Part { all, on_and_below_diagonal };

/// Whether every number of `actual` is finite and within `bounds` of `expected`, of which it may be the first rows.
template <class T>
::testing::AssertionResult within(const Matrix<T>& actual, const Rows<double>& expected, const Rows<double>& bounds,
                                  Part part = Part::all) {
    for (Index i = 0; i < actual.rows(); ++i) {
        const Index cols = part == Part::all ? actual.cols() : std::min(i + 1, actual.cols());
        for (Index j = 0; j < cols; ++j) {
            const double x = static_cast<double>(actual(i, j));
            if (std::isfinite(x) && std::abs(x - expected(i, j)) <= bounds(i, j)) continue;
            return ::testing::AssertionFailure()
                   << "(" << i << ", " << j << ") of [" << actual.rows() << ", " << actual.cols() << "] is " << x
                   << " but must be " << expected(i, j) << " within " << bounds(i, j);
        }
    }
    return ::testing::AssertionSuccess();
}

template <class T>
bool same_bits(T a, T b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

/// Whether two matrices have the same shape and the same bits, signs of zeros included.
template <class T>
::testing::AssertionResult same_bits(const Matrix<T>& a, const Matrix<T>& b) {
    if (a.rows() != b.rows() || a.cols() != b.cols()) {
        return ::testing::AssertionFailure()
               << "shapes [" << a.rows() << ", " << a.cols() << "] and [" << b.rows() << ", " << b.cols() << "]";
    }
    for (Index i = 0; i < a.rows(); ++i) {
        for (Index j = 0; j < a.cols(); ++j) {
            if (same_bits(a(i, j), b(i, j))) continue;
            return ::testing::AssertionFailure() << "(" << i << ", " << j << ") of [" << a.rows() << ", " << a.cols()
                                                 << "] is " << a(i, j) << " in one and " << b(i, j) << " in the other";
        }
    }
    return ::testing::AssertionSuccess();
}

/// The error of a whole matrix against the exact one, which has more digits: root mean square and largest.
struct Error {
    double rms = 0;
    double largest = 0;
};

template <class E, class At>
Error error_against(const Rows<E>& exact, const At& at) {
    double squares = 0, most = 0;
    for (Index i = 0; i < exact.rows(); ++i) {
        for (Index j = 0; j < exact.cols(); ++j) {
            const double difference = static_cast<double>(std::abs(static_cast<E>(at(i, j)) - exact(i, j)));
            squares += difference * difference;
            // Not std::max, which a NaN would pass through unseen.
            if (!(difference <= most)) most = difference;
        }
    }
    return {.rms = std::sqrt(squares / static_cast<double>(exact.rows() * exact.cols())), .largest = most};
}

/// The library's error is at most this many times that of a plain evaluation of the same formulas in the same
/// precision, plus what the rounding of the exact result alone may cost: an ulp of the largest number for the largest
/// error, half an ulp of the root mean square for that of the errors. The largest of some thousand errors is the error
/// of one element, whose terms happen to be large, and as much a matter of chance as the order of its sum, which the
/// width of a packet decides: it is allowed twice as much.
inline constexpr double most_times_plain = 2;
inline constexpr double most_times_plain_largest = 4;

/// Whether that holds. `times_plain`, if given, becomes how many times the plain evaluation's error the library's was,
/// where it was above the floor.
template <class E, class T>
::testing::AssertionResult as_precise_as_plain(const Rows<E>& exact, const Rows<T>& plain, const Matrix<T>& ours,
                                               Error* times_plain = nullptr) {
    const Error size = error_against(exact, [](Index, Index) { return 0.0; });
    const Error floor{.rms = unit_roundoff<T> * size.rms, .largest = 2 * unit_roundoff<T> * size.largest};
    const Error allowed = error_against(exact, plain);
    const Error error = error_against(exact, ours);
    if (times_plain != nullptr) {
        *times_plain = {.rms = error.rms <= floor.rms ? 0 : error.rms / allowed.rms,
                        .largest = error.largest <= floor.largest ? 0 : error.largest / allowed.largest};
    }
    if (error.rms <= most_times_plain * allowed.rms + floor.rms &&
        error.largest <= most_times_plain_largest * allowed.largest + floor.largest) {
        return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "error " << error.rms << " rms, " << error.largest
                                         << " at most; of a plain evaluation " << allowed.rms << " and "
                                         << allowed.largest;
}

/// For gradients: the error may be this many times that of a plain evaluation, for the lookahead keys of earlier tokens
/// are recovered from those of later ones, and in addition so many roundings of `magnitude`, which the gradient would
/// be if nothing cancelled. The backward pass has a weight as exp(score - log sum exp), which is off by as many
/// roundings as these two are large, 10 or 20; a plain evaluation's errors are the same in numerator and denominator.
inline constexpr double most_times_plain_backward = 4;
inline constexpr double most_roundings_backward = 32;

template <class E, class T>
::testing::AssertionResult gradient_as_precise_as_plain(const Rows<E>& exact, const Rows<T>& plain,
                                                        const Rows<E>& magnitude, const Matrix<T>& ours) {
    const Error size = error_against(magnitude, [](Index, Index) { return 0.0; });
    const Error allowed = error_against(exact, plain);
    const Error error = error_against(exact, ours);
    const double rounding = most_roundings_backward * unit_roundoff<T>;
    if (error.rms <= most_times_plain_backward * allowed.rms + rounding * size.rms &&
        error.largest <= most_times_plain_backward * allowed.largest + rounding * size.largest) {
        return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "error " << error.rms << " rms, " << error.largest
                                         << " at most; of a plain evaluation " << allowed.rms << " and "
                                         << allowed.largest << "; magnitude " << size.rms << " and " << size.largest;
}

/// Rotation of `x` with `pair` at a position: the angle is off by a few roundings in double of at most `position`,
/// cosine and sine round to T, and a product and a multiply-add follow.
template <class T>
double rotation_bound(double position, T x, T pair) {
    const double size = std::abs(static_cast<double>(x)) + std::abs(static_cast<double>(pair));
    return (gamma<T>(4) + 8 * unit_roundoff<double> * (position + 1)) * size;
}

/// What backward.hpp states of a gradient's error, relative to the gradient.
template <class T>
double precision_bound(castle::Index length, castle::Index window) {
    return (32 + static_cast<double>(std::min(window, length)) / 8) * unit_roundoff<T>;
}

}  // namespace support
