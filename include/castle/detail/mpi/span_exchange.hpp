// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <vector>

#include <mpi.h>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/base/span_share.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/mpi/calls.hpp>
#include <castle/detail/score/span_states.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/storage.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/types.hpp>

// The states of rows over the spans of all ranks, from those that have the spans to those that merge the rows, and what
// comes of them to all ranks.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The rows of a step, one for each token and query head, in their order in the output. They are dealt in equal parts,
// one after the other, to the ranks that merge them.
struct RowDeal {
    Index rows = 0;
    Index ranks = 1;

    Index begin(Index rank) const { return rows * rank / ranks; }
    Index end(Index rank) const { return begin(rank + 1); }
    Index most() const { return ceil_div(rows, ranks); }
};

// Memory for exchanges, which grows and is kept from call to call.
template <ComputeScalar C>
struct ExchangeMemory {
    AlignedBuffer<C> sent;
    AlignedBuffer<C> received;
    AlignedBuffer<unsigned char> outputs;
    std::vector<int> counts;
    std::vector<Index> places;

    Index bytes() const {
        return (sent.size() + received.size()) * Index(sizeof(C)) + outputs.size() +
               Index(counts.capacity() * sizeof(int)) + Index(places.capacity() * sizeof(Index));
    }
};

// One step's exchange. All ranks have its groups, so each knows what every other one sends; a message has no header.
template <Scalar T, Scalar In>
class SpanExchange {
    using C = Compute<T>;

  public:
    SpanExchange(std::string_view where, const mpi::Communicator& communicator, const Shape& shape,
                 const OutputRows<In>& output, ExchangeMemory<C>& memory)
        : where_(where),
          communicator_(communicator),
          shape_(shape),
          output_(output),
          dv_padded_(round_up(shape.dv, Simd<C>::width)),
          memory_(memory) {}

    // Elements of the state of one row over one span, and bytes of what comes of a row.
    Index state_elements() const { return dv_padded_ + (output_.has_mass() ? 2 : 1) * SpanStates<C>::lanes + 1; }
    Index row_bytes() const {
        const Index extras = (output_.whole_log_sum_exp.data() != nullptr ? 1 : 0) + (output_.has_mass() ? 1 : 0);
        return shape_.dv * Index(sizeof(In)) + extras * Index(sizeof(C));
    }

    // Room for steps of up to so many tokens, which see up to so many spans, so many of them of this rank. The only
    // part that throws but for errors of MPI.
    void reserve(Index tokens, Index own_spans, Index spans) {
        const RowDeal deal{.rows = tokens * shape_.heads, .ranks = communicator_.size()};
        for (const Index most : {deal.rows * own_spans, deal.most() * spans, state_elements() * Index(sizeof(C))}) {
            mpi_count(where_, most);
        }
        const auto grow = [](auto& buffer, Index size) {
            if (size > buffer.size()) buffer = std::decay_t<decltype(buffer)>(size);
        };
        grow(memory_.sent, deal.rows * own_spans * state_elements());
        grow(memory_.received, deal.most() * spans * state_elements());
        grow(memory_.outputs, deal.rows * row_bytes());
        const std::size_t ranks = std::size_t(communicator_.size());
        memory_.counts.resize(4 * ranks);
        memory_.places.resize(2 * ranks);
    }

    // One step: sweeps the spans of this rank, and writes the outputs of all rows.
    template <class Step>
    void run(const Step& step, const Sequences<T>& sequences, const Input<In>& input, const Executor& executor) {
        deal_ = {.rows = step.rows() * shape_.heads, .ranks = communicator_.size()};
        step.sweep(input, [&](Index i, Index h, Index b) { put(step, i, step.scratch(i, h), h, b); });
        exchange_states(step);
        merge(step, sequences, executor);
        exchange_outputs(step);
    }

  private:
    SpanShare share(Index rank) const { return {.rank = rank, .ranks = communicator_.size()}; }
    static Index spans_of(const Group& group, const SpanShare& share) {
        return group.rows() > 0 ? share.spans_before(group.spans()) - share.spans_before(group.first_span()) : 0;
    }

    // Calls f(i, first, end) for every sequence that has rows of [begin, end), with those rows.
    template <class Step, class F>
    void for_sequences(const Step& step, Index begin, Index end, const F& f) const {
        Index first = 0;
        for (Index i = step.first_sequence(); i < step.end_of_sequences() && first < end; ++i) {
            const Index after = first + step.group(i).rows() * shape_.heads;
            if (after > begin && after > first) f(i, first, (std::max)(begin, first), (std::min)(end, after));
            first = after;
        }
    }
    // How many states of rows before `row` a rank has.
    template <class Step>
    Index states_before(const Step& step, Index row, const SpanShare& share) const {
        Index states = 0;
        for_sequences(step, 0, row, [&](Index i, Index, Index first, Index end) {
            states += (end - first) * spans_of(step.group(i), share);
        });
        return states;
    }

    // From scratch to where they are sent from: row by row, span by span.
    template <class Step>
    void put(const Step& step, Index i, const GroupScratch<T>& scratch, Index h, Index b) {
        const SpanShare own = share(communicator_.rank());
        const Group& group = scratch.group();
        const Index begin = own.spans_before(group.first_span()), spans = spans_of(group, own);
        const Index of_group = shape_.heads / shape_.kv_heads;
        Index first_row = 0;
        for (Index j = step.first_sequence(); j < i; ++j) first_row += step.group(j).rows() * shape_.heads;
        const Index base = states_before(step, first_row, own);
        const BlockRows<T> rows = scratch.block(b);
        for (Index k = 0; k < spans; ++k) {
            const SpanStates<C> states = scratch.states(own.span_at(begin + k));
            for (Index row = rows.first - group.first; row < rows.end - group.first; ++row) {
                for (Index g = 0; g < of_group; ++g) {
                    const Index place = base + (row * shape_.heads + h * of_group + g) * spans + k;
                    store(states.of(g * group.rows() + row), memory_.sent.data() + place * state_elements());
                }
            }
        }
    }
    void store(const SpanState<C>& state, C* to) const {
        constexpr Index lanes = SpanStates<C>::lanes;
        to = std::copy_n(state.out, dv_padded_, to);
        to = std::copy_n(state.sum, lanes, to);
        if (output_.has_mass()) to = std::copy_n(state.mass, lanes, to);
        *to = state.largest;
    }
    SpanState<C> stored(const C* from) const {
        constexpr Index lanes = SpanStates<C>::lanes;
        const C* sum = from + dv_padded_;
        return {.largest = from[state_elements() - 1],
                .sum = sum,
                .mass = output_.has_mass() ? sum + lanes : nullptr,
                .out = from};
    }

    template <class Step>
    void exchange_states(const Step& step) {
        const int ranks = communicator_.size(), own = communicator_.rank();
        int* const sent = memory_.counts.data();
        int *const sent_from = sent + ranks, *const received = sent_from + ranks, *const received_at = received + ranks;
        Index at = 0;
        for (int r = 0; r < ranks; ++r) {
            const Index before = states_before(step, deal_.begin(r), share(own));
            sent_from[r] = mpi_count(where_, before);
            sent[r] = mpi_count(where_, states_before(step, deal_.end(r), share(own)) - before);
            const Index own_before = states_before(step, deal_.begin(own), share(r));
            received[r] = mpi_count(where_, states_before(step, deal_.end(own), share(r)) - own_before);
            received_at[r] = mpi_count(where_, at);
            at += received[r];
        }
        const ElementType state(where_, state_elements() * Index(sizeof(C)));
        check_mpi(where_, MPI_Alltoallv(memory_.sent.data(), sent, sent_from, state, memory_.received.data(), received,
                                        received_at, state, communicator_.handle()));
    }

    // The rows of this rank, with the spans in their order, whichever ranks they come from.
    template <class Step>
    void merge(const Step& step, const Sequences<T>& sequences, const Executor& executor) {
        const Index ranks = communicator_.size();
        const int* const received_at = memory_.counts.data() + 3 * ranks;
        Index *const place = memory_.places.data(), *const begin = place + ranks;
        std::copy_n(received_at, ranks, place);
        const auto merge_rows = [&](Index i, Index first_row, Index first, Index end) {
            const Group& group = step.group(i);
            for (Index r = 0; r < ranks; ++r) begin[r] = share(r).spans_before(group.first_span());
            const auto merge_row = [&](Index row) {
                const auto state_of = [&](Index s) {
                    const SpanShare of = share(s % ranks);
                    const Index at =
                        place[of.rank] + (row - first) * spans_of(group, of) + of.spans_before(s) - begin[of.rank];
                    return stored(memory_.received.data() + at * state_elements());
                };
                const Index token = (row - first_row) / shape_.heads, head = (row - first_row) % shape_.heads;
                const Index of_group = shape_.heads / shape_.kv_heads, h = head / of_group;
                // The merge begins with a product of the first state, in its place.
                C* out = const_cast<C*>(state_of(group.first_span()).out);
                finish_row(sequences[i].head(h), group, token, head % of_group, state_of, out,
                           output_.of_group(h, of_group, shape_.dv));
            };
            const Index pieces = ceil_div(end - first, block_size);
            detail::run(pieces > 1 ? executor : executor_for_rows(executor, 1), pieces, [&](Index piece) {
                const Index from = first + piece * block_size;
                for (Index row = from; row < (std::min)(from + block_size, end); ++row) merge_row(row);
            });
            for (Index r = 0; r < ranks; ++r) place[r] += (end - first) * spans_of(group, share(r));
        };
        for_sequences(step, deal_.begin(communicator_.rank()), deal_.end(communicator_.rank()), merge_rows);
    }

    // Calls f(bytes, count) for all that is written of a row.
    template <class F>
    void for_parts(Index row, Index head, const F& f) const {
        f(output_.out.row(row) + head * shape_.dv, shape_.dv);
        if (output_.whole_log_sum_exp.data() != nullptr) f(output_.whole_log_sum_exp.row(row) + head, Index(1));
        if (output_.mass.data() != nullptr) f(output_.mass.row(row) + head, Index(1));
    }
    template <class Step, class F>
    void for_outputs(const Step& step, Index begin, Index end, const F& f) const {
        for_sequences(step, begin, end, [&](Index i, Index first_row, Index first, Index after) {
            for (Index row = first; row < after; ++row) {
                unsigned char* bytes = memory_.outputs.data() + row * row_bytes();
                const Index token = (row - first_row) / shape_.heads;
                for_parts(step.group(i).row + token, (row - first_row) % shape_.heads, [&](auto* x, Index count) {
                    f(x, bytes, std::size_t(count) * sizeof(*x));
                    bytes += std::size_t(count) * sizeof(*x);
                });
            }
        });
    }

    template <class Step>
    void exchange_outputs(const Step& step) {
        const int ranks = communicator_.size(), own = communicator_.rank();
        int *const counts = memory_.counts.data(), *const places = counts + ranks;
        for (int r = 0; r < ranks; ++r) {
            places[r] = mpi_count(where_, deal_.begin(r));
            counts[r] = mpi_count(where_, deal_.end(r) - deal_.begin(r));
        }
        for_outputs(step, deal_.begin(own), deal_.end(own),
                    [](const void* x, void* bytes, std::size_t count) { std::memcpy(bytes, x, count); });
        const ElementType row(where_, row_bytes());
        check_mpi(where_, MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, memory_.outputs.data(), counts, places,
                                         row, communicator_.handle()));
        const auto take = [](void* x, const void* bytes, std::size_t count) { std::memcpy(x, bytes, count); };
        for_outputs(step, 0, deal_.begin(own), take);
        for_outputs(step, deal_.end(own), deal_.rows, take);
    }

    std::string_view where_;
    const mpi::Communicator& communicator_;
    Shape shape_;
    OutputRows<In> output_;
    Index dv_padded_;
    ExchangeMemory<C>& memory_;
    RowDeal deal_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
