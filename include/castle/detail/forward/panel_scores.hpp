// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/state/block_factors.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/head_state.hpp>

// What the forward and the backward pass share: gates and scores of the rows of one block against keys of one panel.
// What is masked is left out by the same code in both.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The rows of a block that a call brings: tokens [first, end) of the block that starts at token `origin`.
template <Scalar T>
struct BlockRows {
    Index origin;
    Index first;
    Index end;
    Sight sight;
    BlockFactors<T> factors;

    const BlockOperands<Compute<T>>& operands() const { return factors.operands(); }
    Index count() const { return end - first; }
    bool finishes() const { return end == origin + block_size; }
    // Whether gates of this block outlive the call or come from an earlier one.
    bool is_split() const { return first > origin || !finishes(); }
};

// Rows of scores: the new tokens of one query head or, where there is but one new token, that token of several query
// heads, so that a panel is read once for all of them.
template <Scalar T>
struct QueryRows {
    LeftFactor<T> queries;   // scale Q^C, [count][d]
    LeftFactor<T> triangle;  // scale Q^C V^U^T, [count][block]
    Index count;
    Index first;  // token of the block that row 0 is
    Index step;   // tokens from one row to the next: 1 or 0
    Index head;   // query head of the group that row 0 belongs to

    // Rows that go through a product together. Of one token memory is the limit, and wide tiles read it best.
    Index highest_tile() const { return step == 0 ? 2 : tile_rows; }

    // Of the group, the one that row i belongs to.
    Index head_of(Index i) const { return head + (step == 0 ? i : 0); }

    // Tokens of the block up to that of row i.
    Index tokens(Index i) const { return first + step * i + 1; }

    static QueryRows of_head(const BlockRows<T>& rows, Index h) {
        const Index skip = rows.first - rows.origin;
        return {.queries = rows.factors.queries(h).rows_from(skip),
                .triangle = rows.factors.triangle(h).rows_from(skip),
                .count = rows.count(),
                .first = skip,
                .step = 1,
                .head = h};
    }
    // Of heads [h, h + count), of which the block has one row each.
    static QueryRows of_heads(const BlockRows<T>& rows, Index h, Index count) {
        const Index skip = rows.first - rows.origin;
        return {.queries = rows.factors.queries_of_token(skip, h),
                .triangle = rows.factors.triangle_of_token(skip, h),
                .count = count,
                .first = skip,
                .step = 0,
                .head = h};
    }
};

// A range of keys is the `Cols` columns of the panel from `column` on. Matrices are [rows][panel_size]; each row uses
// its first Cols elements. In gates, row j is token rows.origin + j.
template <Scalar T>
class PanelScores {
    using C = Compute<T>;

  public:
    PanelScores(HeadState<T>& state, const BlockRows<T>& rows, Index p)
        : state_(state), rows_(rows), tokens_(state.window(), rows.origin, rows.end), p_(p) {}

    const AbsorbedTokens& tokens() const { return tokens_; }

    // gates[t, s] = sigmoid(scale k^U_t . q^U_s): rows are the absorbed tokens, columns the keys, which is the
    // transpose of dense::gates. Those of keys that do not absorb a token are unspecified. Scratch is as large.
    template <Index Cols>
    void compute_gates(Index column, T* gates, C* scratch) const {
        const auto keys = rows_.factors.lookahead_keys().rows_from(skip());
        const auto logits_to = [&](C* logits) {
            multiply<Cols>(rows_.count(), state_.d(), keys, state_.lookahead_queries(p_) + column, panel_size, logits,
                           panel_size);
        };
        gates += skip() * panel_size;
        if constexpr (ComputeScalar<T>) {
            logits_to(gates);
            open_gates<Cols>(rows_.count(), gates, gates);
        } else {
            logits_to(scratch);
            open_gates<Cols>(rows_.count(), scratch, gates);
        }
    }

    // s^U[t, s] = scale q^C_t . U_s + sum_{j <= t} triangle[t, j] gates[j, s], over the tokens j that s absorbs.
    template <Index Cols>
    void compute_lookahead_scores(const QueryRows<T>& rows, Index column, Absorbed absorbed, const T* gates,
                                  C* scores) const {
        state_.with_lookahead_keys(p_, rows_.origin, [&]<class Key>(const Key* keys) {
            const auto tiles = [&](auto height, Index i) {
                for_column_tiles<C, Cols, widest_tile<C, constant<decltype(height)>, Key>>([&](auto packets, Index c) {
                    TileOf<C, decltype(height), decltype(packets)> tile;
                    tile.set_zero();
                    tile.multiply_add(rows.queries.rows_from(i), keys + column + c, panel_size, state_.d());
                    if (absorbed == Absorbed::all) {
                        add_open_block(tile, rows, i, gates + c);
                    } else if constexpr (Cols == block_size) {  // a whole panel is of one kind
                        if (absorbed == Absorbed::some) add_open_block_within(tile, rows, i, column + c, gates + c);
                    }
                    tile.store(scores + i * panel_size + c, panel_size);
                });
            };
            for_row_tiles(rows.count, tiles, rows.highest_tile());
        });
    }

    // The same under a mask: words[j] says which of the keys, from the first of them on, absorb token j of the block,
    // and `absorbing` what they come to; gates of others are 0, which adds nothing while the triangle is finite.
    template <Index Cols>
    void compute_lookahead_scores(const QueryRows<T>& rows, Index column, Cover absorbing, const BlockWords& words,
                                  const T* gates, C* scores) const {
        const bool leave_out =
            absorbing == Cover::some && !is_finite(rows.triangle, rows.count, rows.tokens(rows.count - 1));
        const Absorbed absorbed = absorbing == Cover::none || leave_out ? Absorbed::none : Absorbed::all;
        compute_lookahead_scores<Cols>(rows, column, absorbed, gates, scores);
        for (Index i = 0; leave_out && i < rows.count; ++i) {
            multiply_add_where<Cols>(1, rows.tokens(i), rows.triangle.rows_from(i), gates, panel_size,
                                     scores + i * panel_size, panel_size, words.data());
        }
    }

    // s^C, or 0 where scores have no causal part.
    template <Index Cols>
    void compute_causal_scores(const QueryRows<T>& rows, Index column, C* scores) const {
        if (state_.has_causal_scores()) {
            multiply<Cols>(rows.count, state_.d(), rows.queries, state_.causal_keys(p_) + column, panel_size, scores,
                           panel_size, rows.highest_tile());
        } else {
            for (Index i = 0; i < rows.count; ++i) std::fill_n(scores + i * panel_size, Cols, C(0));
        }
    }

    // s^C - SiLU(s^U) in place of s^C, for rows of lookahead scores beside them.
    template <Index Cols>
    void subtract_lookahead(const QueryRows<T>& rows, const C* lookahead_scores, C* scores) const {
        if (!state_.has_lookahead()) return;
        with_lookahead_term([&](const auto& term) {
            for (Index i = 0; i < rows.count; ++i) {
                C* score = scores + i * panel_size;
                const C* lookahead = lookahead_scores + i * panel_size;
                for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                    Simd<C>::store(score + c,
                                   term(Simd<C>::load(lookahead + c)).subtracted_from(Simd<C>::load(score + c)));
                });
            }
        });
    }

    // Calls f with the function that makes of s^U the term to subtract from a score.
    template <class F>
    void with_lookahead_term(const F& f) const {
        using Packet = typename Simd<C>::Packet;
        if (!state_.has_lookahead()) {
            f([](Packet) CASTLE_INLINE_LAMBDA { return NoTerm<C>(); });
        } else if (state_.has_silu()) {
            f([](Packet x) CASTLE_INLINE_LAMBDA { return SiluTerm<C>(x); });
        } else {
            f([](Packet x) CASTLE_INLINE_LAMBDA { return PlainTerm<C>{x}; });
        }
    }

  private:
    Index skip() const { return rows_.first - rows_.origin; }

    // The part of s^U that the block's own tokens have, for the tile of rows from i, with the gates from its columns
    // on, every one of which takes the block's tokens up to that of row i.
    template <int R, int V>
    EIGEN_ALWAYS_INLINE void add_open_block(Tile<C, R, V>& tile, const QueryRows<T>& rows, Index i,
                                            const T* gates) const {
        const Index common = rows.tokens(i);
        tile.multiply_add_steps(rows.triangle.rows_from(i), gates, panel_size, common,
                                rows.step * (block_size - common));
    }
    // The same for columns from c of the panel, where only some keys absorb only some tokens.
    template <int R, int V>
    EIGEN_ALWAYS_INLINE void add_open_block_within(Tile<C, R, V>& tile, const QueryRows<T>& rows, Index i, Index c,
                                                   const T* gates) const {
        const Index common = rows.tokens(i);
        const auto triangle = rows.triangle.rows_from(i);
        const auto columns = [&](Index j) { return tokens_.columns(j, p_); };
        if (rows.step == 0) {
            tile.multiply_add_within(triangle, gates, panel_size, common, c, columns);
        } else {
            tile.multiply_add_steps_within(triangle, gates, panel_size, common, c, columns);
        }
    }

    HeadState<T>& state_;
    const BlockRows<T>& rows_;
    AbsorbedTokens tokens_;
    Index p_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
