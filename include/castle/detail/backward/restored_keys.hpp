// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/input.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Recovers U of some keys of a panel, Cols of them from `column` on, as it was before a block of tokens.
//
// The backward pass subtracts what the block added. That fails where the block added an infinity or a NaN, or something
// so large that less than half of the digits of what was there before are left: gradients of tokens before the block
// would depend on it. U is then summed up anew, as in the forward pass. That costs what the gates and the folding of
// the forward pass cost up to the block, and happens where U grew by a factor of 2^12 in float, 2^26 in double, or
// became infinite or NaN in more of its elements.
template <Scalar T, Scalar In, Index Cols>
class RestoredKeys {
    using C = Compute<T>;
    using S = Simd<C>;
    static constexpr Index chunk = panel_size;
    static constexpr std::uint64_t every_column = ~std::uint64_t(0) >> (panel_size - Cols);
    // Half of the digits.
    static constexpr C most_growth = C(Index(1) << (std::numeric_limits<C>::digits / 2));

  public:
    // Scratch: [block_size][panel_size] each.
    struct Scratch {
        C* gates;
        C* keys;
    };

    RestoredKeys(HeadState<T>& state, const Qkv<ConstMatrixView<In>>& lookahead, const Sight& sight, Index p,
                 Index column, const Scratch& scratch)
        : state_(state),
          lookahead_(lookahead),
          sight_(sight),
          p_(p),
          column_(column),
          scratch_(scratch),
          u_(state.lookahead_keys(p) + column) {}

    // How large U is; of one with infinities or NaNs only that.
    struct Size {
        C largest;
        bool is_finite;
    };
    Size size() const {
        auto largest = S::zero(), zero_or_nan = S::zero();
        for (Index k = 0; k < state_.d(); ++k) {
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto x = S::load(u_ + k * panel_size + c);
                largest = S::larger(S::larger(x, S::negate(x)), largest);
                zero_or_nan = S::add(zero_or_nan, S::sub(x, x));
            });
        }
        return {S::largest(largest), !std::isnan(S::sum(zero_or_nan))};
    }

    // After what the block at token `origin` added has been subtracted; `before` is the size that U had. What is
    // infinite or NaN after blocks that added nothing of the kind is so for earlier tokens' sake.
    void run(Index origin, const Size& before, GradientState<C>& gradients) {
        const Size after = size();
        if (after.is_finite ? before.largest <= most_growth * after.largest
                            : origin > gradients.last_bad_block(p_, column_, Cols)) {
            return;
        }
        gradients.set_last_bad_block(p_, column_, Cols, sum_up(origin, every_column));
    }

    // The same under a mask, key by key: what one key has absorbed is nothing to its neighbours, whose bits stay.
    using Sizes = std::array<C, std::size_t(Cols)>;
    Sizes sizes() const {
        Sizes largest;
        for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
            auto size = S::zero(), zero_or_nan = S::zero();
            for (Index k = 0; k < state_.d(); ++k) {
                const auto x = S::load(u_ + k * panel_size + c);
                size = S::larger(S::larger(x, S::negate(x)), size);
                zero_or_nan = S::add(zero_or_nan, S::sub(x, x));
            }
            S::store(largest.data() + c, S::add(size, zero_or_nan));
        });
        return largest;
    }
    void run(Index origin, const Sizes& before, GradientState<C>& gradients) {
        const Sizes after = sizes();
        const bool adds_none = origin > gradients.last_bad_block(p_, column_, Cols);
        std::uint64_t columns = 0;
        bool has_bad = false;
        for (Index c = 0; c < Cols; ++c) {
            const C size = after[std::size_t(c)];
            const bool is_bad = !std::isfinite(size);
            if (is_bad ? adds_none : before[std::size_t(c)] <= most_growth * size) continue;
            columns |= std::uint64_t(1) << c;
            has_bad = has_bad || is_bad;
        }
        if (columns == 0) return;
        const Index last_bad_block = sum_up(origin, columns);
        if (has_bad) gradients.set_last_bad_block(p_, column_, Cols, last_bad_block);
    }

  private:
    // U before the block at token `origin`; returns the last block that made more of it infinite or NaN, or -1.
    // Of the columns of the word.
    Index sum_up(Index origin, std::uint64_t columns) {
        for (Index k = 0; k < state_.d(); ++k) keep_columns<Cols>(~columns, C(0), u_ + k * panel_size);
        Index bad = 0, last_bad_block = -1;
        const Index first_key = p_ * panel_size + column_;
        for (Index token = round_down(first_key, block_size); token < origin; token += block_size) {
            const AbsorbedTokens tokens(state_.window(), token, token + block_size);
            const Absorbed absorbed = tokens.by_keys(first_key, Cols);
            if (absorbed == Absorbed::none) continue;
            const Operand<In> values{lookahead_.v.row(token), 1, lookahead_.v.outer_stride()};
            if (sight_.rule == nullptr) {
                compute_gates(token);
                fold_tokens<Cols>(tokens, absorbed, p_, column_, state_.d(), values, scratch_.gates, block_size, u_);
            } else if (!fold_seen(token, values, columns)) {
                continue;
            }
            if (size().is_finite) continue;
            const Index now = not_finite();
            if (now > bad) last_bad_block = token;
            bad = now;
        }
        return last_bad_block;
    }

    // The same under a mask; whether it absorbs anything.
    bool fold_seen(Index token, const Operand<In>& values, std::uint64_t columns) {
        BlockWords absorbed =
            absorbed_words(sight_.rule, state_.window(), token, token, token + block_size, p_, sight_.keys);
        if (cover_of(absorbed, 0, block_size) == Cover::none) return false;
        compute_gates(token);
        if (columns == every_column) {
            close_gates<Cols>(absorbed, column_, block_size, scratch_.gates);
            fold_words<Cols>(absorbed, column_, state_.d(), values, scratch_.gates, block_size, u_);
            return true;
        }
        for (auto& word : absorbed) word = word >> column_ & columns;
        multiply_add_where<Cols>(state_.d(), block_size, values, scratch_.gates, panel_size, u_, panel_size,
                                 absorbed.data());
        return true;
    }

    Index not_finite() const {
        Index count = 0;
        for (Index k = 0; k < state_.d(); ++k) {
            for (Index c = 0; c < Cols; ++c) count += std::isfinite(u_[k * panel_size + c]) ? 0 : 1;
        }
        return count;
    }

    // Of the block at `token`.
    void compute_gates(Index token) {
        std::fill_n(scratch_.gates, block_size * panel_size, C(0));
        const Index d = state_.d();
        for (Index k = 0; k < d; k += chunk) {
            const Index n = (std::min)(chunk, d - k);
            for (Index j = 0; j < block_size; ++j) {
                const In* key = lookahead_.k.row(token + j) + k;
                for (Index i = 0; i < n; ++i) scratch_.keys[j * chunk + i] = state_.scale() * widened(key[i]);
            }
            multiply_add<Cols, chunk, panel_size>(
                block_size, n, scratch_.keys, state_.lookahead_queries(p_) + k * panel_size + column_, scratch_.gates);
        }
        open_gates<Cols>(block_size, scratch_.gates, scratch_.gates);
        if constexpr (StorageScalar<T>) {
            for (Index i = 0; i < block_size * panel_size; ++i) {
                scratch_.gates[i] = widened(narrowed<T>(scratch_.gates[i]));
            }
        }
    }

    HeadState<T>& state_;
    const Qkv<ConstMatrixView<In>>& lookahead_;
    const Sight& sight_;
    Index p_;
    Index column_;
    Scratch scratch_;
    C* u_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
