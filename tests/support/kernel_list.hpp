// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/castle.hpp>

// What the library computes for a scalar T, to be compiled once rather than in every program again: here all of it is
// declared, and the files kernels_*.cpp are what that refers to. 16-bit scalars are computed in another one, C.
#define CASTLE_TEST_KERNELS(EXTERN, T, C)                                                                           \
    namespace castle {                                                                                              \
    EXTERN template class UqKvCache<T>;                                                                             \
    EXTERN template void extend(UqKvCache<T>&, const Input<T>&, MatrixView<T>, const Executor&);                    \
    EXTERN template void extend(UqKvCache<T>&, const Input<T>&, const Output<T>&, const Masks&, const Executor&);   \
    EXTERN template Matrix<T> extend(UqKvCache<T>&, const Input<T>&);                                               \
    EXTERN template void extend(std::span<UqKvCache<T>* const>, std::span<const Index>, const Input<T>&,            \
                                MatrixView<T>, const Executor&);                                                    \
    EXTERN template void extend(std::span<UqKvCache<T>* const>, std::span<const Index>, const Input<T>&,            \
                                const Output<T>&, const Masks&, const Executor&);                                   \
    EXTERN template void parallel(const Input<T>&, MatrixView<T>, const Options&, const Masks&);                    \
    EXTERN template Matrix<T> parallel(const Input<T>&, const Options&, const Masks&);                              \
    EXTERN template void parallel(const Shape&, const Input<T>&, MatrixView<T>, const Options&, const Masks&);      \
    EXTERN template void parallel(const Shape&, const Input<T>&, const Output<T>&, const Options&, const Masks&);   \
    EXTERN template Matrix<T> parallel(const Shape&, const Input<T>&, const Options&, const Masks&);                \
    EXTERN template void recurrent(const Input<T>&, MatrixView<T>, const Options&, const Mask&);                    \
    EXTERN template Matrix<T> recurrent(const Input<T>&, const Options&, const Mask&);                              \
    EXTERN template void recurrent(const Shape&, const Input<T>&, MatrixView<T>, const Options&, const Mask&);      \
    EXTERN template Matrix<T> recurrent(const Shape&, const Input<T>&, const Options&, const Mask&);                \
    EXTERN template class Workspace<T>;                                                                             \
    EXTERN template void forward(Workspace<T>&, const Input<T>&, MatrixView<T>, const Executor&);                   \
    EXTERN template void forward(Workspace<T>&, std::span<const Index>, const Input<T>&, MatrixView<T>,             \
                                 const Executor&);                                                                  \
    EXTERN template void forward(Workspace<T>&, const Input<T>&, const Output<T>&, const Masks&, const Executor&);  \
    EXTERN template void forward(Workspace<T>&, std::span<const Index>, const Input<T>&, const Output<T>&,          \
                                 const Masks&, const Executor&);                                                    \
    EXTERN template void backward(Workspace<T>&, const Input<T>&, ConstMatrixView<C>, const GradientView<C>&,       \
                                  const Executor&);                                                                 \
    EXTERN template void backward(Workspace<T>&, const Input<T>&, const OutputGradient<C>&, const GradientView<C>&, \
                                  const TermsGradientView<C>&, const Executor&);                                    \
    EXTERN template Gradient<C> backward(Workspace<T>&, const Input<T>&, ConstMatrixView<C>);                       \
    EXTERN template Gradient<C> backward(const Input<T>&, ConstMatrixView<C>, const Options&);                      \
    EXTERN template Gradient<C> backward(const Shape&, const Input<T>&, ConstMatrixView<C>, const Options&);        \
    EXTERN template class LayerCache<T>;                                                                            \
    EXTERN template class LayerWorkspace<T>;                                                                        \
    EXTERN template class Layer<T>;                                                                                 \
    }                                                                                                               \
    namespace castle::detail {                                                                                      \
    EXTERN template void pack_block(HeadState<T>&, const GroupScratch<T>&, Index, const Input<T>&);                 \
    EXTERN template void sweep_gates(HeadState<T>&, const GroupScratch<T>&, Index);                                 \
    EXTERN template void sweep_span(HeadState<T>&, const GroupScratch<T>&, Index);                                  \
    EXTERN template void finish_rows(const HeadState<T>&, const GroupScratch<T>&, Index, const OutputRows<T>&);     \
    EXTERN template class HeadState<T>;                                                                             \
    EXTERN template class SequenceState<T>;                                                                         \
    EXTERN template class AppendTransaction<T>;                                                                     \
    EXTERN template class PanelSweep<T>;                                                                            \
    EXTERN template class PanelGradient<T>;                                                                         \
    EXTERN template class BackwardPass<T>;                                                                          \
    EXTERN template class TrainingRecord<T>;                                                                        \
    EXTERN template void AppendTransaction<T>::attend(Index, Index, Index, const Input<T>&,                         \
                                                      const OutputRows<T>&) const;                                  \
    EXTERN template void TrainingRecord<T>::backward(const Input<T>&, ConstMatrixView<C>, const OutputGradient<C>&, \
                                                     const GradientView<C>&, const TermsGradientView<C>&,           \
                                                     const Executor&);                                              \
    EXTERN template void PackedMatrix<T>::multiply_panel(const ConstMatrixView<T>&, Index,                          \
                                                         const MatrixView<C>&) const;                               \
    EXTERN template void PackedMatrix<T>::multiply_panel(const MatrixView<C>&, Index, const MatrixView<T>&) const;  \
    }

// What a 16-bit scalar has with elements of the other one: what layers and workspaces call.
#define CASTLE_TEST_MIXED_KERNELS(EXTERN, T, C)                                                                     \
    namespace castle::detail {                                                                                      \
    EXTERN template void pack_block(HeadState<T>&, const GroupScratch<T>&, Index, const Input<C>&);                 \
    EXTERN template void finish_rows(const HeadState<T>&, const GroupScratch<T>&, Index, const OutputRows<C>&);     \
    EXTERN template class PanelGradient<T, C>;                                                                      \
    EXTERN template class BackwardPass<T, C>;                                                                       \
    EXTERN template void AppendTransaction<T>::attend(Index, Index, Index, const Input<T>&,                         \
                                                      const OutputRows<C>&) const;                                  \
    EXTERN template void AppendTransaction<T>::attend(Index, Index, Index, const Input<C>&,                         \
                                                      const OutputRows<C>&) const;                                  \
    EXTERN template void TrainingRecord<T>::backward(const Input<C>&, ConstMatrixView<C>, const OutputGradient<C>&, \
                                                     const GradientView<C>&, const TermsGradientView<C>&,           \
                                                     const Executor&);                                              \
    }

// The dense forms, which take no 16-bit scalars.
#define CASTLE_TEST_DENSE_FORMS(EXTERN, T)                                                         \
    namespace castle::dense {                                                                      \
    EXTERN template Matrix<T> gates(const Input<T>&, const Options&, const Mask&);                 \
    EXTERN template Matrix<T> lookahead_keys(const Input<T>&, Index, const Options&, const Mask&); \
    EXTERN template Matrix<T> lookahead_scores(const Input<T>&, const Options&, const Mask&);      \
    EXTERN template Matrix<T> causal_scores(const Input<T>&, const Options&, const Mask&);         \
    EXTERN template Matrix<T> scores(const Input<T>&, const Options&, const Mask&);                \
    EXTERN template Matrix<T> weights(const Input<T>&, const Options&, const Mask&);               \
    EXTERN template Matrix<T> output(const Input<T>&, const Options&, const Mask&);                \
    }

CASTLE_TEST_KERNELS(extern, float, float)
CASTLE_TEST_DENSE_FORMS(extern, float)
CASTLE_TEST_KERNELS(extern, bfloat16, float)
CASTLE_TEST_MIXED_KERNELS(extern, bfloat16, float)
#ifndef CASTLE_TEST_FLOAT_ONLY
CASTLE_TEST_KERNELS(extern, double, double)
CASTLE_TEST_DENSE_FORMS(extern, double)
CASTLE_TEST_KERNELS(extern, half, float)
CASTLE_TEST_MIXED_KERNELS(extern, half, float)
#endif
