// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/pair_products.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/state/block_operands.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The left factors of products with what is stored as T.
template <Scalar T>
using LeftFactor = std::conditional_t<multiplies_pairs<T>, PairOperand<T>, Operand<Compute<T>>>;

// Of d rows of a block's operands, [d][block], a left factor [block][d]: as they are or, where products are of pairs,
// rounded to T, in pairs of rows.
template <Scalar T>
struct RowFactor {
    using C = Compute<T>;

    // How much memory it takes beside the rows, in elements of C.
    static Index elements(Index d) {
        return multiplies_pairs<T> ? size(d) * Index(sizeof(T)) / Index(sizeof(C)) : 0;  // a block is even
    }
    // The same in elements of T.
    static Index size(Index d) { return round_up(d, 2) * block_size; }

    static LeftFactor<T> of(const C* rows, const T* memory) {
        if constexpr (multiplies_pairs<T>) {
            return {memory, 2, block_size};
        } else {
            return {rows, 1, block_size};
        }
    }

    // Makes it of the tokens [first, end).
    static void make(const C* rows, Index d, Index first, Index end, T* memory) {
        if constexpr (multiplies_pairs<T>) {
            using P = PairProducts<T>;
            constexpr Index width = Simd<C>::width;
            for (Index k = 0; k < d; k += 2) {
                const C* row = rows + k * block_size;
                for (Index j = round_down(first, width); j < end; j += width) {
                    P::store(memory + k * block_size + 2 * j,
                             k + 1 < d ? P::load(row + j, row + block_size + j) : P::load_alone(row + j));
                }
            }
        }
    }
};

// The operands of a block as left factors: as they are or, where products are of pairs, rounded to T, in pairs along
// what is summed over.
template <Scalar T>
class BlockFactors {
    using C = Compute<T>;
    using Factor = LeftFactor<T>;

  public:
    // How much memory they take beside the operands.
    static Index elements(const OperandSizes& sizes) {
        if constexpr (multiplies_pairs<T>) {
            const Index queries = sizes.group * RowFactor<T>::elements(sizes.d);
            if (!sizes.has_lookahead) return queries;
            const Index others = (sizes.d + sizes.group * block_size) * block_size;
            return queries + RowFactor<T>::elements(sizes.d) + others * Index(sizeof(T)) / Index(sizeof(C));
        } else {
            return 0;
        }
    }

    // In memory of so many elements.
    BlockFactors(const BlockOperands<C>& operands, const OperandSizes& sizes, C* memory)
        : operands_(operands), sizes_(sizes), memory_(reinterpret_cast<T*>(memory)) {}

    const BlockOperands<C>& operands() const { return operands_; }

    // Of query head h, [block][d].
    Factor queries(Index h) const { return RowFactor<T>::of(operands_.causal_queries(h), query_pairs(h)); }
    Factor lookahead_keys() const { return RowFactor<T>::of(operands_.lookahead_keys(), query_pairs(sizes_.group)); }
    // [d][block]
    Factor lookahead_values() const {
        if constexpr (multiplies_pairs<T>) {
            return {values(), block_size, 1};
        } else {
            return {operands_.lookahead_values(), block_size, 1};
        }
    }
    // [block][block]
    Factor triangle(Index h) const {
        if constexpr (multiplies_pairs<T>) {
            return {triangles() + h * operands_.triangle_stride(), block_size, 1};
        } else {
            return {operands_.triangle(h), block_size, 1};
        }
    }
    // The same of one token, with query heads from h on as rows.
    Factor queries_of_token(Index token, Index h) const {
        Factor of_head = queries(h).rows_from(token);
        of_head.row = multiplies_pairs<T> ? RowFactor<T>::size(sizes_.d) : operands_.query_stride();
        return of_head;
    }
    Factor triangle_of_token(Index token, Index h) const {
        Factor of_head = triangle(h).rows_from(token);
        of_head.row = operands_.triangle_stride();
        return of_head;
    }

    // Makes those of the tokens [first, end) from the operands; lookahead values of all tokens up to there.
    void make(Index first, Index end) const {
        if constexpr (multiplies_pairs<T>) {
            const auto pair_up = [&](const C* rows, Index h) {
                RowFactor<T>::make(rows, sizes_.d, first, end, query_pairs(h));
            };
            for (Index h = 0; h < sizes_.group; ++h) pair_up(operands_.causal_queries(h), h);
            if (!sizes_.has_lookahead) return;
            pair_up(operands_.lookahead_keys(), sizes_.group);
            make_values(end);
            for (Index h = 0; h < sizes_.group; ++h) {
                for (Index i = first; i < end; ++i) {
                    const Index row = i * block_size;
                    round_row(operands_.triangle(h) + row, block_size,
                              triangles() + h * operands_.triangle_stride() + row);
                }
            }
        }
    }
    // Lookahead values alone, of the tokens up to `end`.
    void make_values(Index end) const {
        if constexpr (multiplies_pairs<T>) {
            for (Index k = 0; k < sizes_.d; ++k) {
                const Index row = k * block_size;
                round_row(operands_.lookahead_values() + row, end, values() + row);
            }
        }
    }

  private:
    T* query_pairs(Index h) const { return memory_ + h * RowFactor<T>::size(sizes_.d); }
    T* values() const { return query_pairs(sizes_.group + 1); }
    T* triangles() const { return values() + sizes_.d * block_size; }

    BlockOperands<C> operands_;
    OperandSizes sizes_;
    T* memory_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
