// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>

#include <castle/detail/base/span_share.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/mpi/agreement.hpp>
#include <castle/detail/mpi/fingerprint.hpp>
#include <castle/detail/mpi/span_exchange.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mpi/communicator.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The tokens of `input` onto sequences of which every rank has a share of the spans, with the outputs of all rows to
// `output` on all ranks; see `append`. start(arguments) checks what the call brings, and adds it to
// the fingerprint. Memory for exchanges is kept for
// calls with one token for each sequence, as their scratch is.
template <Scalar T, Scalar In, class Start>
void append_sharded(std::string_view where, const mpi::Communicator& communicator, const Sequences<T>& sequences,
                    std::span<const Index> counts, const CallMasks& masks, const Input<In>& input,
                    const OutputRows<In>& output, ExchangeMemory<Compute<T>>& kept, const Executor& executor,
                    const Start& start) {
    AlignedBuffer<Compute<T>> scratch;
    ExchangeMemory<Compute<T>> of_call;
    std::optional<AppendTransaction<T>> transaction;
    std::optional<SpanExchange<T, In>> exchange;
    Fingerprint arguments;
    agree(where, communicator, arguments, [&] {
        start(arguments);
        if (input.causal.q.rows() == 0) return;
        transaction.emplace(sequences, counts, masks, /*together=*/true, scratch, executor);
        if (communicator.size() == 1) return;
        exchange.emplace(where, communicator, sequences[0].kind().shape, output,
                         transaction->is_one_each() ? kept : of_call);
        Index own_spans = 0, spans = 0;
        for (Index i = 0; i < Index(counts.size()); ++i) {
            const auto& head = sequences[i].head(0);
            const Index keys = (std::max)(sequences[i].work().after, sequences[i].work().keys);
            own_spans = (std::max)(own_spans, head.most_spans(keys));
            spans = (std::max)(spans, head.most_spans(keys, SpanShare()));
        }
        exchange->reserve(transaction->most_rows(), own_spans, spans);
    });
    if (!transaction) return;
    transaction->for_steps(/*packed=*/false, [&](const auto& step) {
        if (exchange) {
            exchange->run(step, sequences, input, executor);
        } else {
            step.attend(input, output);
        }
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
