// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/eigen_allocations.hpp"

#include <gtest/gtest.h>

#include <castle/castle.hpp>

// What the library computes, compiled once for a scalar T rather than in every test again. This header is precompiled
// and comes first in all of them; kernels_float.cpp and kernels_double.cpp are what it refers to.
#define CASTLE_TEST_KERNELS(EXTERN, T)                                                                                 \
    namespace castle {                                                                                                 \
    EXTERN template class HeadCache<T>;                                                                                \
    EXTERN template class UqKvCache<T>;                                                                                \
    EXTERN template class KvCache<T>;                                                                                  \
    EXTERN template void extend(UqKvCache<T>&, const HeadInput<T>&, MatrixView<T>);                                    \
    EXTERN template Matrix<T> extend(UqKvCache<T>&, const HeadInput<T>&);                                              \
    EXTERN template void extend(KvCache<T>&, const Qkv<T>&, MatrixView<T>);                                            \
    EXTERN template Matrix<T> extend(KvCache<T>&, const Qkv<T>&);                                                      \
    EXTERN template void extend(std::span<UqKvCache<T>* const>, const HeadInput<T>&, MatrixView<T>, const Executor&);  \
    EXTERN template void parallel(const HeadInput<T>&, MatrixView<T>, const Options&);                                 \
    EXTERN template Matrix<T> parallel(const HeadInput<T>&, const Options&);                                           \
    EXTERN template void causal_attention(const Qkv<T>&, MatrixView<T>, const CausalOptions&);                         \
    EXTERN template Matrix<T> causal_attention(const Qkv<T>&, const CausalOptions&);                                   \
    EXTERN template void recurrent(const HeadInput<T>&, MatrixView<T>, const Options&);                                \
    EXTERN template Matrix<T> recurrent(const HeadInput<T>&, const Options&);                                          \
    EXTERN template class HeadWorkspace<T>;                                                                            \
    EXTERN template class Workspace<T>;                                                                                \
    EXTERN template class CausalWorkspace<T>;                                                                          \
    EXTERN template void forward(Workspace<T>&, const HeadInput<T>&, MatrixView<T>);                                   \
    EXTERN template void forward(CausalWorkspace<T>&, const Qkv<T>&, MatrixView<T>);                                   \
    EXTERN template void backward(Workspace<T>&, const HeadInput<T>&, ConstMatrixView<T>, const HeadGradientView<T>&); \
    EXTERN template void backward(CausalWorkspace<T>&, const Qkv<T>&, ConstMatrixView<T>, const QkvGradientView<T>&);  \
    EXTERN template class MultiHeadWorkspace<T>;                                                                       \
    EXTERN template class MultiHeadCache<T>;                                                                           \
    EXTERN template class MultiHeadLayer<T>;                                                                           \
    EXTERN template class MultiHeadCastle<T>;                                                                          \
    EXTERN template class MultiHeadCausal<T>;                                                                          \
    }                                                                                                                  \
    namespace castle::dense {                                                                                          \
    EXTERN template Matrix<T> gates(const HeadInput<T>&, const Options&);                                              \
    EXTERN template Matrix<T> lookahead_keys(const HeadInput<T>&, Index, const Options&);                              \
    EXTERN template Matrix<T> lookahead_scores(const HeadInput<T>&, const Options&);                                   \
    EXTERN template Matrix<T> causal_scores(const HeadInput<T>&, const Options&);                                      \
    EXTERN template Matrix<T> scores(const HeadInput<T>&, const Options&);                                             \
    EXTERN template Matrix<T> weights(const HeadInput<T>&, const Options&);                                            \
    EXTERN template Matrix<T> output(const HeadInput<T>&, const Options&);                                             \
    }                                                                                                                  \
    namespace castle::detail {                                                                                         \
    EXTERN template void pack_block(HeadState<T>&, const GroupScratch<T>&, const Group&, Index, const HeadInput<T>&);  \
    EXTERN template void sweep_gates(HeadState<T>&, const GroupScratch<T>&, const Group&, Index);                      \
    EXTERN template void sweep_span(HeadState<T>&, const GroupScratch<T>&, const Group&, Index);                       \
    EXTERN template void merge_spans(const HeadState<T>&, const GroupScratch<T>&, const Group&, Index,                 \
                                     const OutputRows<T>&);                                                            \
    EXTERN template class HeadState<T>;                                                                                \
    EXTERN template class PanelSweep<T>;                                                                               \
    EXTERN template class PanelGradient<T>;                                                                            \
    EXTERN template class BackwardPass<T>;                                                                             \
    }

CASTLE_TEST_KERNELS(extern, float)
#ifndef CASTLE_TEST_FLOAT_ONLY
CASTLE_TEST_KERNELS(extern, double)
#endif
