// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/terms.hpp>

// Every check of what a caller passes. Decoding runs them for every token: they compare plain data, and make words of
// it only where something fails.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A number of tokens, or a position, up to here is far from where sizes would overflow.
inline constexpr Index most_tokens = Index(1) << 40;

inline void check_tokens(std::string_view where, std::string_view name, Index tokens) {
    check_size(where, name, tokens, 0);
    if (tokens > most_tokens) fail(where, name, " is ", tokens, " but must not exceed ", most_tokens);
}

// Sizes up to here have products with the layout's constants that stay far from overflow.
inline constexpr Index most_size = Index(1) << 24;

// Each head has an object of its own, and a saved cache may say that it has many without any data.
inline constexpr Index most_heads = Index(1) << 12;

inline bool are_sizes(const Shape& s) {
    return s.d >= 1 && s.dv >= 1 && s.heads >= 1 && s.kv_heads >= 1 && s.d <= most_size && s.dv <= most_size &&
           s.heads <= most_heads && s.heads % s.kv_heads == 0;
}

inline void check_sizes(std::string_view where, const Shape& shape) {
    if (are_sizes(shape)) return;
    check_size(where, "d", shape.d, 1);
    check_size(where, "dv", shape.dv, 1);
    check_size(where, "heads", shape.heads, 1);
    check_size(where, "kv_heads", shape.kv_heads, 1);
    if (shape.d > most_size || shape.dv > most_size) {
        fail(where, "d is ", shape.d, " and dv is ", shape.dv, " but neither may exceed ", most_size);
    }
    if (shape.heads > most_heads) fail(where, "heads is ", shape.heads, " but must not exceed ", most_heads);
    fail(where, "heads is ", shape.heads, " but must be a multiple of kv_heads, which is ", shape.kv_heads);
}

// How many tokens a cache is to be able to roll back.
inline Index checked_rollback(std::string_view where, Index rollback) {
    check_size(where, "rollback", rollback, 0);
    if (rollback > most_size) fail(where, "rollback is ", rollback, " but must not exceed ", most_size);
    return rollback;
}

// How many tokens the rows of a cache see; what no sequence reaches is no limit.
inline Index checked_sliding_window(std::string_view where, Index tokens) {
    check_size(where, "sliding_window", tokens, 1);
    return tokens > most_tokens ? unlimited : tokens;
}

inline void check_rollback(Index tokens, Index most) {
    check_size("rollback", "tokens", tokens, 0);
    if (tokens > most) fail("rollback", "tokens is ", tokens, " but the cache can roll back at most ", most, " now");
}

template <Scalar T>
bool is_scale(double scale) {
    return std::abs(scale) <= static_cast<double>((std::numeric_limits<Compute<T>>::max)());
}

template <Scalar T>
void check_options(std::string_view where, const Options& options) {
    check_size(where, "options.lookahead_window", options.lookahead_window, 0);
    if (options.scale && !is_scale<T>(*options.scale)) {
        fail(where, "options.scale is ", *options.scale, " but must be finite, also in the scalar of the matrices");
    }
}

// The score terms of so many query heads.
template <Scalar T>
void check_terms(std::string_view where, const ScoreTerms& terms, Index heads) {
    const auto is_finite = [](double x) { return std::isfinite(static_cast<Compute<T>>(x)); };
    const auto check_table = [&](std::string_view name, const Matrix<double>& table) {
        if (table.rows() == 0 && table.cols() == 0) return;
        if (table.cols() == 0)
            fail(where, "options.terms.", name, " is ", extents_of(table), " but must have a column");
        if (table.rows() != 1 && table.rows() != heads) {
            fail(where, "options.terms.", name, " is ", extents_of(table), " but must have 1 row or ", heads,
                 ", one for each head");
        }
        for (Index h = 0; h < table.rows(); ++h) {
            for (Index k = 0; k < table.cols(); ++k) {
                if (is_finite(table(h, k))) continue;
                fail(where, "options.terms.", name, "(", h, ", ", k, ") is ", table(h, k),
                     " but must be finite, also in the scalar of the matrices");
            }
        }
    };
    check_table("factor", terms.factor);
    check_table("bias", terms.bias);
    if (terms.soft_cap && !(static_cast<Compute<T>>(*terms.soft_cap) >= (std::numeric_limits<Compute<T>>::min)() &&
                            is_finite(*terms.soft_cap))) {
        fail(where, "options.terms.soft_cap is ", *terms.soft_cap,
             " but must be above 0 and finite, also in the scalar of the matrices");
    }
    if (terms.sinks.empty()) return;
    if (Index(terms.sinks.size()) != heads) {
        fail(where, "options.terms.sinks has ", Index(terms.sinks.size()), " elements but there are ", heads, " heads");
    }
    for (Index h = 0; h < heads; ++h) {
        const double sink = terms.sinks[std::size_t(h)];
        if (!is_finite(sink)) fail(where, "options.terms.sinks[", h, "] is ", sink, " but must be finite");
    }
}

// Where the gradients of these terms go.
template <ComputeScalar T>
void check_terms_gradient(std::string_view where, const ScoreTerms& terms, const TermsGradientView<T>& g) {
    const auto check_one = [&](std::string_view name, const MatrixView<T>& m, Index rows, Index cols) {
        if (m.rows() == 0 || (m.rows() == rows && m.cols() == cols)) return;
        fail(where, "d_terms.", name, " is ", extents_of(m), " but must be ", Extents{rows, cols},
             ", as in the options, or empty");
    };
    check_one("factor", g.factor, terms.factor.rows(), terms.factor.cols());
    check_one("bias", g.bias, terms.bias.rows(), terms.bias.cols());
    check_one("sinks", g.sinks, terms.sinks.empty() ? 0 : 1, Index(terms.sinks.size()));
}

template <Scalar T>
void check_mass_gradient(std::string_view where, const OutputGradient<T>& d_output, bool has_mass) {
    if (d_output.mass.rows() == 0 || has_mass) return;
    fail(where, "d_mass is ", extents_of(d_output.mass), " but the forward pass was asked for no masses");
}

// That the tables reach from rows [first, end) to every key that the mask lets them see, of `keys` keys.
inline void check_distances(std::string_view where, const ScoreTerms* terms, const MaskRule* rule, Index first,
                            Index end, Index keys) {
    if (terms == nullptr || !terms->has_tables() || first >= end) return;
    const Index distances = terms->distances();
    if (distances >= (std::max)(end, keys)) return;
    for (Index row = first; row < end; ++row) {
        const KeyRange reach = reach_of(rule, row, row + 1);
        const Index reach_end = (std::min)(reach.end, keys);
        for (Index p = reach.begin / panel_size; p * panel_size < reach_end; ++p) {
            // Those that are too far away.
            std::uint64_t beyond = range_word(0, row - distances + 1, p) | range_word(row + distances, keys, p);
            if (beyond != 0) beyond &= word_of(rule, row, p, keys);
            if (beyond == 0) continue;
            const Index key = p * panel_size + std::countr_zero(beyond);
            fail(where, "options.terms has tables of ", distances, " distances but row ", row, " sees key ", key,
                 ", at distance ", key < row ? row - key : key - row);
        }
    }
}

// The masks of a call on so many sequences.
inline void check_masks(std::string_view where, std::string_view name, const Masks& masks, Index sequences) {
    if (masks.size() > 1 && masks.size() != sequences) {
        fail(where, name, " has ", masks.size(), " masks but there are ", sequences, " sequences");
    }
}

// The mask, null if it is causal, and the tables for rows [first, end) of a sequence that has `end` tokens after them.
// There are `keys` keys where these are another sequence's.
inline void check_sight(std::string_view where, const Mask* mask, const ScoreTerms* terms, Index first, Index end,
                        const Mask* mass_over, Index cross_keys = -1) {
    const Index keys = cross_keys >= 0 ? cross_keys : end;
    if (mass_over != nullptr) check_mask_size(where, "mass_over", *mass_over, end);
    if (mask != nullptr) check_mask_rows(where, *mask, first, end, keys);
    check_distances(where, terms, mask != nullptr ? mask->rule() : nullptr, first, end, keys);
}

// What the arguments of one call must have the shapes of.
struct Call {
    std::string_view where;    // the call
    Index rows;                // of all arguments
    std::string_view rows_of;  // where that number is from
    std::string_view object;   // what the call works on
    Shape shape = {};          // of its heads
    Index d_model = 0;         // of a layer
    Index cross_keys = -1;     // where keys and values are those of another sequence, their number

    // One argument.
    template <class View>
    void check_argument(std::string_view group, std::string_view name, const View& m, Index cols) const {
        check_argument(group, name, m, rows, cols);
    }
    template <class View>
    void check_argument(std::string_view group, std::string_view name, const View& m, Index must_rows,
                        Index cols) const {
        const bool fits = m.rows() == must_rows && m.cols() == cols && must_rows >= 0;
        const bool is_apart = m.rows() <= 1 || m.outer_stride() >= m.cols();
        const bool is_there = m.data() != nullptr || m.rows() == 0 || m.cols() == 0;
        if (!fits || !is_apart || !is_there) {
            fail_argument(group, name, extents_of(m), {must_rows, cols}, m.outer_stride(), is_apart);
        }
    }

    // Causal and lookahead views: an Input, or where its gradient goes. Without lookahead the three lookahead views may
    // be empty.
    template <class Views>
    void check_all(std::string_view causal, std::string_view lookahead, const Views& x, bool has_lookahead) const {
        const Index keys = shape.kv_heads * shape.d;
        check_argument(causal, "q", x.causal.q, shape.heads * shape.d);
        const Index key_rows = cross_keys >= 0 ? cross_keys : rows;
        check_argument(causal, "k", x.causal.k, key_rows, keys);
        check_argument(causal, "v", x.causal.v, key_rows, shape.kv_heads * shape.dv);
        if (!has_lookahead && x.lookahead.q.rows() == 0 && x.lookahead.k.rows() == 0 && x.lookahead.v.rows() == 0) {
            return;
        }
        check_argument(lookahead, "q", x.lookahead.q, keys);
        check_argument(lookahead, "k", x.lookahead.k, keys);
        check_argument(lookahead, "v", x.lookahead.v, keys);
    }
    template <Scalar T>
    void check_input(const Input<T>& input, bool has_lookahead) const {
        check_all("input.causal.", "input.lookahead.", input, has_lookahead);
    }
    template <Scalar T>
    void check_gradient(const GradientView<T>& gradient, bool has_lookahead) const {
        check_all("gradient.causal.", "gradient.lookahead.", gradient, has_lookahead);
    }
    template <class View>
    void check_out(std::string_view name, const View& m) const {
        check_argument("", name, m, shape.heads * shape.dv);
    }
    // All that an Output or an OutputGradient has.
    template <class Views>
    void check_outputs(std::string_view group, const Views& all) const {
        check_argument(group, "out", all.out, shape.heads * shape.dv);
        check_by_products(group, all);
    }
    template <class Views>
    void check_by_products(std::string_view group, const Views& all) const {
        if (all.log_sum_exp.rows() != 0) check_argument(group, "log_sum_exp", all.log_sum_exp, shape.heads);
        if (all.mass.rows() != 0) check_argument(group, "mass", all.mass, shape.heads);
    }
    template <Scalar T>
    void check_output(std::string_view group, const Output<T>& output, Index sequences) const {
        check_outputs(group, output);
        check_mass_over(group, output, sequences);
    }
    template <Scalar T>
    void check_mass_over(std::string_view group, const Output<T>& output, Index sequences) const {
        check_masks(where, text(group, "mass_over"), output.mass_over, sequences);
        if (output.mass.rows() != 0 && output.mass_over.size() == 0) {
            fail(where, group, "mass is ", extents_of(output.mass), " but ", group, "mass_over has no mask");
        }
    }

  private:
    // Out of line, so that a check costs its comparisons and no more.
    [[noreturn]] EIGEN_DONT_INLINE void fail_argument(std::string_view group, std::string_view name, Extents is,
                                                      Extents must, Index stride, bool is_apart) const {
        if (is.rows != must.rows || is.cols != must.cols) {
            fail(where, group, name, " is ", is, " but must be ", must, " ", because());
        }
        if (is.rows < 0 || is.cols < 0) fail(where, group, name, " is ", is, " but no side may be negative");
        if (!is_apart) {
            fail(where, group, name, " is ", is, " but its rows lie only ", stride,
                 " elements apart, which must be at least ", is.cols);
        }
        fail(where, group, name, " is ", is, " but points nowhere");
    }

    std::string because() const {
        std::string words = text("for ");
        if (!rows_of.empty()) append(words, text(rows, " tokens (", rows_of, ") and "));
        append(words, text(object, " of "));
        if (d_model > 0) append(words, text("d_model ", d_model));
        if (d_model > 0 && shape.d > 0) append(words, text(", "));
        if (shape.d > 0) append(words, text("d ", shape.d));
        if (shape.dv > 0) append(words, text(", dv ", shape.dv));
        if (shape.heads > 1) append(words, text(", ", shape.heads, " heads on ", shape.kv_heads, " key-value heads"));
        return words;
    }
};

// The sizes of a head on its own, which says them itself: d through q, dv through v.
template <Scalar T>
Shape own_shape(std::string_view where, const Input<T>& input, std::string_view group = "input.causal.") {
    const auto check_cols = [&](std::string_view name, ConstMatrixView<T> m) {
        if (m.cols() < 1) fail(where, group, name, " is ", extents_of(m), " but must have at least one column");
    };
    check_cols("q", input.causal.q);
    check_cols("v", input.causal.v);
    return {.d = input.causal.q.cols(), .dv = input.causal.v.cols()};
}

// The keys of an input whose rows are queries of standard attention to another sequence, under a mask: a number other
// than that of the queries; otherwise -1.
template <Scalar T>
Index cross_keys(const Input<T>& input, bool has_lookahead, const Masks& mask) {
    const bool is_masked = mask.size() == 1 && mask[0]->rule() != nullptr && mask[0]->rule()->lengths().empty();
    const Index keys = input.causal.k.rows();
    return !has_lookahead && is_masked && keys != input.causal.q.rows() ? keys : -1;
}

// A call on a whole sequence.
template <Scalar T>
Call call_of_whole(std::string_view where, const Shape& shape, const Input<T>& input, Index cross_keys = -1) {
    return {.where = where,
            .rows = input.causal.q.rows(),
            .rows_of = "the rows of input.causal.q",
            .object = "heads",
            .shape = shape,
            .cross_keys = cross_keys};
}

// The rows of a backward pass's input against the tokens of the forward pass that its workspace holds.
inline void check_forward_pass(std::string_view where, std::string_view name, Index rows, Index tokens) {
    if (tokens == 0 && rows != 0) {
        fail(where, name, " has ", rows,
             " tokens but the workspace holds no forward pass; every backward pass needs one before it");
    }
    if (rows != tokens) {
        fail(where, name, " has ", rows, " tokens but the workspace holds a forward pass of ", tokens,
             "; every backward pass needs a forward pass of its own before it");
    }
}

// The tokens of several sequences in one call: one count for each of them, and as many rows in all.
inline void check_counts(std::string_view where, std::span<const Index> counts, std::string_view rows_of, Index rows) {
    Index left = rows;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        if (counts[i] < 0) fail(where, "counts[", Index(i), "] is ", counts[i], " but must be at least 0");
        if (counts[i] > left) {
            fail(where, "the counts up to counts[", Index(i), "] = ", counts[i], " come to more than the ", rows,
                 " rows of ", rows_of);
        }
        left -= counts[i];
    }
    if (left != 0) fail(where, "the counts come to ", rows - left, " but ", rows_of, " has ", rows, " rows");
}

// The way to the mark that check_batch leaves in a cache.
struct BatchMark {
    template <class Cache>
    static Index& of(Cache& cache) {
        return cache.batch_mark_;
    }
};

// A batch has each of its caches once. Each is marked with its place; what an older batch left there is no mistake, as
// this cache is not at that place before its own in this one. So nothing is compared pair by pair, allocated or undone.
template <class Caches>
void check_batch(std::string_view where, const Caches& caches, std::span<const Index> counts) {
    if (caches.size() != counts.size()) {
        fail(where, "caches has ", Index(caches.size()), " elements but counts has ", Index(counts.size()));
    }
    for (std::size_t i = 0; i < caches.size(); ++i) {
        if (caches[i] == nullptr) fail(where, "caches[", Index(i), "] is null");
        Index& mark = BatchMark::of(*caches[i]);
        if (mark < Index(i) && caches[std::size_t(mark)] == caches[i]) {
            fail(where, "caches[", mark, "] and caches[", Index(i), "] are the same cache");
        }
        mark = Index(i);
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
