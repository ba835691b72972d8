// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <string_view>

#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

// Every check of what a caller passes.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// One argument against the shape that another one, or the cache, asks for. `because` is called only for the sentence
// of a failure: decoding runs these checks for every token and must not allocate.
template <class View, class Because>
void check_shape(std::string_view where, std::string_view group, std::string_view name, const View& m, Index rows,
                 Index cols, const Because& because) {
    if (m.rows() != rows || m.cols() != cols) {
        fail(where, group, name, " is ", as_shape(m), " but must be ", Shape{rows, cols}, " ", because());
    }
    if (m.rows() < 0 || m.cols() < 0) fail(where, group, name, " is ", as_shape(m), " but no side may be negative");
    if (m.rows() > 1 && m.outer_stride() < m.cols()) {
        fail(where, group, name, " is ", as_shape(m), " but its rows lie only ", m.outer_stride(),
             " elements apart, which must be at least ", m.cols());
    }
    if (m.data() == nullptr && m.rows() != 0 && m.cols() != 0) {
        fail(where, group, name, " is ", as_shape(m), " but points nowhere");
    }
}

inline void check_size(std::string_view where, std::string_view name, Index value, Index least) {
    if (value < least) {
        fail(where, name, " is ", value, " but must be at least ", least);
    }
}

// A number of tokens, or a position, up to here is far from where sizes would overflow.
inline constexpr Index most_tokens = Index(1) << 40;

inline void check_tokens(std::string_view where, std::string_view name, Index tokens) {
    check_size(where, name, tokens, 0);
    if (tokens > most_tokens) fail(where, name, " is ", tokens, " but must not exceed ", most_tokens);
}

// How many tokens a cache is to be able to take off.
inline Index checked_rollback(std::string_view where, Index rollback) {
    constexpr Index most = Index(1) << 24;
    check_size(where, "rollback", rollback, 0);
    if (rollback > most) fail(where, "rollback is ", rollback, " but must not exceed ", most);
    return rollback;
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
void check_batch(std::string_view where, const Caches& caches) {
    for (std::size_t i = 0; i < caches.size(); ++i) {
        if (caches[i] == nullptr) fail(where, "caches[", Index(i), "] is null");
        Index& mark = BatchMark::of(*caches[i]);
        if (mark < Index(i) && caches[std::size_t(mark)] == caches[i]) {
            fail(where, "caches[", mark, "] and caches[", Index(i), "] are the same cache");
        }
        mark = Index(i);
    }
}

inline void check_rollback(Index tokens, Index most) {
    check_size("rollback", "tokens", tokens, 0);
    if (tokens > most) fail("rollback", "tokens is ", tokens, " but the cache can roll back at most ", most, " now");
}

template <Scalar T>
void check_options(std::string_view where, const Options& options) {
    check_size(where, "options.lookahead_window", options.lookahead_window, 0);
    if (options.scale && !(std::abs(*options.scale) <= static_cast<double>((std::numeric_limits<T>::max)()))) {
        fail(where, "options.scale is ", *options.scale, " but must be finite, also in the scalar of the matrices");
    }
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

// Sizes whose products with the layout's constants stay far from overflow.
inline void check_head_shape(std::string_view where, HeadShape shape) {
    constexpr Index most = Index(1) << 24;
    check_size(where, "d", shape.d, 1);
    check_size(where, "dv", shape.dv, 1);
    if (shape.d > most || shape.dv > most) {
        fail(where, "d is ", shape.d, " and dv is ", shape.dv, " but neither may exceed ", most);
    }
}

// The options of an object that is made for heads of `shape`, if both fit.
template <Scalar T>
Options checked_options(std::string_view where, HeadShape shape, Options options) {
    check_head_shape(where, shape);
    check_options<T>(where, options);
    return options;
}

// A Qkv, or the views that its gradient goes to.
template <class Views, class Because>
void check_qkv(std::string_view where, std::string_view group, const Views& x, Index rows, HeadShape shape,
               const Because& because) {
    check_shape(where, group, "q", x.q, rows, shape.d, because);
    check_shape(where, group, "k", x.k, rows, shape.d, because);
    check_shape(where, group, "v", x.v, rows, shape.dv, because);
}

template <Scalar T, class Because>
void check_head(std::string_view where, const HeadInput<T>& head, Index rows, HeadShape shape, const Because& because) {
    check_qkv(where, "head.causal.", head.causal, rows, shape, because);
    check_qkv(where, "head.lookahead.", head.lookahead, rows, {.d = shape.d, .dv = shape.d}, because);
}

// A head on its own says its sizes itself: L and d through q, dv through v.
template <Scalar T>
HeadShape own_shape(std::string_view where, std::string_view group, const Qkv<T>& causal) {
    const auto check_cols = [&](std::string_view name, ConstMatrixView<T> m) {
        if (m.cols() < 1) fail(where, group, name, " is ", as_shape(m), " but must have at least one column");
    };
    check_cols("q", causal.q);
    check_cols("v", causal.v);
    const HeadShape shape{.d = causal.q.cols(), .dv = causal.v.cols()};
    check_head_shape(where, shape);
    return shape;
}

// What the shapes of a head on its own are held against.
template <Scalar T>
auto because_of(const HeadInput<T>& head) {
    return [&] {
        return text("to go with head.causal.q ", as_shape(head.causal.q), " and head.causal.v ",
                    as_shape(head.causal.v));
    };
}
template <Scalar T>
auto because_of(const Qkv<T>& head) {
    return [&] { return text("to go with q ", as_shape(head.q), " and v ", as_shape(head.v)); };
}

template <Scalar T>
HeadShape checked_shape(std::string_view where, const HeadInput<T>& head, const Options& options) {
    check_options<T>(where, options);
    const HeadShape shape = own_shape(where, "head.causal.", head.causal);
    check_head(where, head, head.causal.q.rows(), shape, because_of(head));
    return shape;
}

template <Scalar T>
HeadShape checked_shape(std::string_view where, const Qkv<T>& head, const Options& options) {
    check_options<T>(where, options);
    const HeadShape shape = own_shape(where, "", head);
    check_qkv(where, "", head, head.q.rows(), shape, because_of(head));
    return shape;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
