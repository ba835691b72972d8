// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>
#include <vector>

#include <castle/castle.hpp>

#include "support/generators.hpp"

// The forms of the attention, each into a poisoned output.
namespace support {

/// The shape of a lone head.
template <class T>
castle::Shape shape_of(const castle::Input<T>& input) {
    return {.d = input.causal.q.cols(), .dv = input.causal.v.cols()};
}
template <class T>
castle::Shape shape_of(const Head<T>& h) {
    return shape_of(h.input());
}

template <class T>
Matrix<T> run_parallel(const castle::Shape& shape, const castle::Input<T>& input, const castle::Options& options = {}) {
    return written<T>(input.causal.q.rows(), shape.heads * shape.dv,
                      [&](castle::MatrixView<T> out) { castle::parallel(shape, input, out, options); });
}

template <class T>
Matrix<T> run_parallel(const castle::Input<T>& input, const castle::Options& options = {}) {
    return written<T>(input.causal.q.rows(), input.causal.v.cols(),
                      [&](castle::MatrixView<T> out) { castle::parallel(input, out, options); });
}

template <class T>
Matrix<T> run_recurrent(const castle::Shape& shape, const castle::Input<T>& input,
                        const castle::Options& options = {}) {
    return written<T>(input.causal.q.rows(), shape.heads * shape.dv,
                      [&](castle::MatrixView<T> out) { castle::recurrent(shape, input, out, options); });
}

template <class T>
Matrix<T> run_recurrent(const castle::Input<T>& input, const castle::Options& options = {}) {
    return written<T>(input.causal.q.rows(), input.causal.v.cols(),
                      [&](castle::MatrixView<T> out) { castle::recurrent(input, out, options); });
}

/// The tokens onto the cache in chunks of the given sizes; what is left after the last chunk does not run.
template <class T>
Matrix<T> run_extend(castle::UqKvCache<T>& cache, const castle::Input<T>& input, const std::vector<Index>& chunks,
                     const castle::Executor& executor = {}) {
    const castle::Shape shape = cache.shape();
    return written<T>(input.causal.q.rows(), shape.heads * shape.dv, [&](castle::MatrixView<T> out) {
        Index first = 0;
        for (const Index chunk : chunks) {
            castle::extend(cache, input.tokens(first, chunk), out.middle_rows(first, chunk), executor);
            first += chunk;
        }
    });
}

/// The lookahead keys of all key-value heads of a cache, side by side, `[size, kv_heads d]`.
template <class T>
Matrix<castle::Compute<T>> all_lookahead_keys(const castle::UqKvCache<T>& cache) {
    const castle::Shape shape = cache.shape();
    Matrix<castle::Compute<T>> keys(cache.size(), shape.kv_heads * shape.d);
    if (cache.size() == 0) return keys;
    for (Index h = 0; h < shape.kv_heads; ++h) keys.middleCols(h * shape.d, shape.d) = cache.lookahead_keys(h);
    return keys;
}

/// What a whole run leaves behind.
template <class T>
struct Outcome {
    Matrix<T> output;
    Matrix<castle::Compute<T>> lookahead_keys;  // of all key-value heads, side by side
};

template <class T>
Outcome<T> run_in_chunks(const castle::Shape& shape, const castle::Input<T>& input, const std::vector<Index>& chunks,
                         const castle::Options& options = {}) {
    castle::UqKvCache<T> cache(shape, options);
    Matrix<T> output = run_extend(cache, input, chunks);
    return {.output = std::move(output), .lookahead_keys = all_lookahead_keys(cache)};
}

template <class T>
Outcome<T> run_in_chunks(const castle::Input<T>& input, const std::vector<Index>& chunks,
                         const castle::Options& options = {}) {
    return run_in_chunks(shape_of(input), input, chunks, options);
}

template <class T>
Outcome<T> run_at_once(const castle::Shape& shape, const castle::Input<T>& input, const castle::Options& options = {}) {
    return run_in_chunks(shape, input, {input.causal.q.rows()}, options);
}

template <class T>
Outcome<T> run_at_once(const castle::Input<T>& input, const castle::Options& options = {}) {
    return run_at_once(shape_of(input), input, options);
}

}  // namespace support
