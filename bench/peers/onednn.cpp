// SPDX-License-Identifier: Apache-2.0

// With oneDNN: products of whole matrices. `dnnl_sgemm` takes about as long as the matmul primitive, and is the same
// function in all versions of the library.
#include <dnnl.h>
#include <omp.h>

#include <stdexcept>

#include "between.hpp"
#include "peers.hpp"

namespace castle_bench::peers {
namespace {

using View = castle::ConstMatrixView<float>;

// `out = scale a b`, or `scale a b^T`
void product(float scale, const View& a, const View& b, bool transposed, Out out) {
    const dnnl_status_t status =
        dnnl_sgemm('N', transposed ? 'T' : 'N', out.rows(), out.cols(), a.cols(), scale, a.data(), a.outer_stride(),
                   b.data(), b.outer_stride(), 0.0F, out.data(), out.outer_stride());
    if (status != dnnl_success) throw std::runtime_error("dnnl_sgemm returned " + std::to_string(status));
}

Matrix scaled_product(float scale, const View& a, const View& b) {
    Matrix result(a.rows(), b.rows());
    product(scale, a, b, true, result);
    return result;
}

void castle_attention(const Head& head, Out out) {
    omp_set_num_threads(1);
    const float scale = scale_of(head.causal.q);

    Matrix products = scaled_product(scale, head.causal.q, head.lookahead.v);
    zero_later(products, 0);
    Matrix gates = scaled_product(scale, head.lookahead.k, head.lookahead.q);
    to_gates(gates, 0);
    Matrix lookahead(gates.rows(), gates.cols());
    product(1.0F, products, gates, false, lookahead);  // S^U

    Matrix weights = scaled_product(scale, head.causal.q, head.causal.k);
    subtract_silu(weights, lookahead, 0);
    softmax(weights, 0);
    zero_later(weights, 0);
    product(1.0F, weights, head.causal.v, false, out);
}

void causal_attention(const Qkv& head, Out out) {
    omp_set_num_threads(1);
    Matrix weights = scaled_product(scale_of(head.q), head.q, head.k);
    softmax(weights, 0);
    zero_later(weights, 0);
    product(1.0F, weights, head.v, false, out);
}

std::string library() {
    const dnnl_version_t& version = *dnnl_version();
    return "oneDNN " + std::to_string(version.major) + "." + std::to_string(version.minor) + "." +
           std::to_string(version.patch);
}

}  // namespace

const Peer onednn = {"onednn", library, castle_attention, causal_attention};

}  // namespace castle_bench::peers
