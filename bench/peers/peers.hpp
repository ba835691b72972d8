// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <castle/input.hpp>
#include <castle/types.hpp>

// CASTLE and standard causal attention as they are written today with other libraries: a library a translation unit.
// CMake says which of them are there.
namespace castle_bench::peers {

using Head = castle::Input<float>;
using Qkv = castle::Qkv<castle::ConstMatrixView<float>>;
using Out = castle::MatrixView<float>;

/// One way to compute both attentions over a whole sequence, one head on one thread. Each function sets the threads of
/// its own library first, for several libraries may share one setting.
struct Peer {
    const char* name;
    std::string (*library)();                    ///< name and version of what does the work
    void (*castle_attention)(const Head&, Out);  ///< eqs. 11 and 12
    void (*causal_attention)(const Qkv&, Out);   ///< softmax(Q K^T / sqrt(d) + mask) V
};

extern const Peer torch;     ///< tensor operations, O(L^3) for CASTLE
extern const Peer openblas;  ///< BLAS products of whole matrices, O(L^3)
extern const Peer onednn;    ///< the same with oneDNN's product
extern const Peer eigen;     ///< blocks of queries, O(L^2 d)

}  // namespace castle_bench::peers
