// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>
#include <vector>

#include <castle/castle.hpp>

#include "support/generators.hpp"

// The forms of the attention, each into a poisoned output.
namespace support {

template <class T>
Matrix<T> run_parallel(const castle::HeadInput<T>& head, const castle::Options& options = {}) {
    return written<T>(head.causal.q.rows(), head.causal.v.cols(),
                      [&](castle::MatrixView<T> out) { castle::parallel(head, out, options); });
}

template <class T>
Matrix<T> run_recurrent(const castle::HeadInput<T>& head, const castle::Options& options = {}) {
    return written<T>(head.causal.q.rows(), head.causal.v.cols(),
                      [&](castle::MatrixView<T> out) { castle::recurrent(head, out, options); });
}

/// The tokens onto the cache in chunks of the given sizes; what is left after the last chunk does not run.
template <class T>
Matrix<T> run_extend(castle::UqKvCache<T>& cache, const castle::HeadInput<T>& head, const std::vector<Index>& chunks) {
    return written<T>(head.causal.q.rows(), head.causal.v.cols(), [&](castle::MatrixView<T> out) {
        Index first = 0;
        for (const Index chunk : chunks) {
            castle::extend(cache, head.tokens(first, chunk), out.middle_rows(first, chunk));
            first += chunk;
        }
    });
}

template <class T>
castle::HeadShape shape_of(const Head<T>& h) {
    return {.d = h.qc.cols(), .dv = h.vc.cols()};
}

/// What a whole run leaves behind.
template <class T>
struct Outcome {
    Matrix<T> output;
    Matrix<T> lookahead_keys;
};

template <class T>
Outcome<T> run_in_chunks(const castle::HeadInput<T>& head, const std::vector<Index>& chunks,
                         const castle::Options& options = {}) {
    castle::UqKvCache<T> cache({.d = head.causal.q.cols(), .dv = head.causal.v.cols()}, options);
    Matrix<T> output = run_extend(cache, head, chunks);
    return {.output = std::move(output), .lookahead_keys = cache.lookahead_keys()};
}

template <class T>
Outcome<T> run_at_once(const castle::HeadInput<T>& head, const castle::Options& options = {}) {
    return run_in_chunks(head, {head.causal.q.rows()}, options);
}

}  // namespace support
