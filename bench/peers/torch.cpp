// SPDX-License-Identifier: Apache-2.0

// With PyTorch's C++ library: eqs. 11 and 12 as tensor operations, in place where there is nothing to keep; standard
// attention by scaled_dot_product_attention. ATen is the part of the library that has the tensors; its headers compile
// in half the time of all of them.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/version.h>

#include <cmath>
#include <limits>
#include <optional>

#include "peers.hpp"

namespace castle_bench::peers {
namespace {

using at::Tensor;

template <class Function>
Function* loaded_function(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// PyTorch's setting covers OpenMP and MKL. An OpenBLAS below it may have threads of its own, and whether there is one
// is known only now.
void use_one_thread() {
    at::set_num_threads(1);
    static auto* const set_openblas_threads = loaded_function<void(int)>("openblas_set_num_threads");
    if (set_openblas_threads != nullptr) set_openblas_threads(1);
}

// A tensor that looks at the same elements; from_blob takes no pointer to const.
Tensor tensor(const castle::ConstMatrixView<float>& view) {
    return at::from_blob(const_cast<float*>(view.data()), {view.rows(), view.cols()}, {view.outer_stride(), 1},
                         at::kFloat);
}

// `Q / sqrt(d)`: cheaper than to scale every product of it.
Tensor scaled(const castle::ConstMatrixView<float>& q) {
    return tensor(q).div(std::sqrt(static_cast<double>(q.cols())));
}

// `out = softmax(scores + M^C) V^C`
void attend(Tensor scores, const castle::ConstMatrixView<float>& v, Out out) {
    const Tensor mask = at::full_like(scores, -std::numeric_limits<double>::infinity()).triu_(1);
    Tensor result = tensor(out);
    at::mm_out(result, at::softmax(scores.add_(mask), -1), tensor(v));
}

void castle_attention(const Head& head, Out out) {
    const c10::InferenceMode no_gradients;
    use_one_thread();
    const Tensor qc = scaled(head.causal.q), kc = tensor(head.causal.k);
    const Tensor qu = scaled(head.lookahead.q), ku = tensor(head.lookahead.k), vu = tensor(head.lookahead.v);

    // sigmoid(x + M^U) is sigmoid(x) above the diagonal, where M^U is 0, and 0 elsewhere.
    const Tensor gates = at::mm(qu, ku.t()).sigmoid_().triu_(1);
    const Tensor lookahead_scores = at::mm(at::mm(qc, vu.t()).tril_(), gates.t());
    attend(at::mm(qc, kc.t()).sub_(at::silu(lookahead_scores)), head.causal.v, out);
}

// softmax(Q K^T / sqrt(d) + mask) V by the library's own function, which is a fused kernel for these arguments.
void standard_attention(const Qkv& head, const std::optional<Tensor>& mask, bool is_causal, Out out) {
    const c10::InferenceMode no_gradients;
    use_one_thread();
    // [batch, heads, L, d]
    const auto lone = [](const Tensor& x) { return x.unsqueeze(0).unsqueeze(0); };
    const Tensor result = at::scaled_dot_product_attention(lone(tensor(head.q)), lone(tensor(head.k)),
                                                           lone(tensor(head.v)), mask, 0.0, is_causal);
    tensor(out).copy_(result.squeeze(0).squeeze(0));
}

void causal_attention(const Qkv& head, Out out) { standard_attention(head, std::nullopt, true, out); }
void masked_attention(const Qkv& head, const Seen& seen, Out out) {
    standard_attention(head, tensor(castle::ConstMatrixView<float>(seen.bias)), false, out);
}

std::string library() {
    auto* const openblas = loaded_function<char*()>("openblas_get_config");
    return std::string("PyTorch ") + TORCH_VERSION + ", products by " +
           (openblas != nullptr ? "OpenBLAS" : "another BLAS");
}

}  // namespace

const Peer torch = {"torch", library, castle_attention, causal_attention, masked_attention};

}  // namespace castle_bench::peers
