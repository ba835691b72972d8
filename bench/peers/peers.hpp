// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/types.hpp>

// CASTLE and standard causal attention as they are written today with other libraries: a library a translation unit.
// CMake says which of them are there.
namespace castle_bench::peers {

using Head = castle::Input<float>;
using Qkv = castle::Qkv<castle::ConstMatrixView<float>>;
using Out = castle::MatrixView<float>;

/// Which keys each row sees, as castle takes it and as a matrix to add to the scores, 0 or minus infinity.
struct Seen {
    castle::Mask mask;
    castle::Matrix<float> bias;
};

/// One way to compute both attentions over a whole sequence, one head on one thread. Each function sets the threads of
/// its own library first, for several libraries may share one setting.
struct Peer {
    const char* name;
    std::string (*library)();                    ///< name and version of what does the work
    void (*castle_attention)(const Head&, Out);  ///< eqs. 11 and 12
    void (*causal_attention)(const Qkv&, Out);   ///< softmax(Q K^T / sqrt(d) + mask) V
    /// The same with any mask; null where the library has no function for it.
    void (*masked_attention)(const Qkv&, const Seen&, Out) = nullptr;
};

extern const Peer torch;     ///< tensor operations, O(L^3) for CASTLE, and its own function for standard attention
extern const Peer openblas;  ///< BLAS products of whole matrices, O(L^3)
extern const Peer onednn;    ///< the same with oneDNN's product
extern const Peer eigen;     ///< blocks of queries, O(L^2 d)

}  // namespace castle_bench::peers
