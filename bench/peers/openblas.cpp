// SPDX-License-Identifier: Apache-2.0

// With OpenBLAS: products of whole matrices. Where eq. 11 takes `tril` of a factor, and where the weights are
// triangular, `strmm` is the product that leaves the zeros out; it takes half the time of `sgemm`.
#include <cblas.h>

#include "between.hpp"
#include "peers.hpp"

namespace castle_bench::peers {
namespace {

using View = castle::ConstMatrixView<float>;

blasint size(Index n) { return static_cast<blasint>(n); }

// `scale a b^T`
Matrix scaled_product(float scale, const View& a, const View& b) {
    Matrix result(a.rows(), b.rows());
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, size(a.rows()), size(b.rows()), size(a.cols()), scale,
                a.data(), size(a.outer_stride()), b.data(), size(b.outer_stride()), 0.0F, result.data(),
                size(result.cols()));
    return result;
}

// `x = tril(a) x`
void multiply_with_tril(const Matrix& a, Out x) {
    cblas_strmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, size(x.rows()), size(x.cols()), 1.0F,
                a.data(), size(a.cols()), x.data(), size(x.outer_stride()));
}

void castle_attention(const Head& head, Out out) {
    openblas_set_num_threads(1);
    const float scale = scale_of(head.causal.q);

    const Matrix products = scaled_product(scale, head.causal.q, head.lookahead.v);
    Matrix lookahead = scaled_product(scale, head.lookahead.k, head.lookahead.q);
    to_gates(lookahead, 0);
    multiply_with_tril(products, lookahead);  // the gates become S^U

    Matrix weights = scaled_product(scale, head.causal.q, head.causal.k);
    subtract_silu(weights, lookahead, 0);
    softmax(weights, 0);
    out.map() = head.causal.v.map();
    multiply_with_tril(weights, out);
}

void causal_attention(const Qkv& head, Out out) {
    openblas_set_num_threads(1);
    Matrix weights = scaled_product(scale_of(head.q), head.q, head.k);
    softmax(weights, 0);
    out.map() = head.v.map();
    multiply_with_tril(weights, out);
}

std::string library() { return openblas_get_config(); }

}  // namespace

const Peer openblas = {"openblas", library, castle_attention, causal_attention};

}  // namespace castle_bench::peers
