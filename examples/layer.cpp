// SPDX-License-Identifier: Apache-2.0

// A multi-head layer with rotary embedding and a lookahead window, on all processors where there is OpenMP: over a
// whole sequence, and as a model runs it, first the prompt and then token by token.
#include <iostream>

#include <castle/layer.hpp>

namespace {

castle::Executor all_processors() {
#ifdef _OPENMP
    return castle::openmp_executor();
#else
    return {};  // the calling thread
#endif
}

}  // namespace

int main() {
    using Matrix = castle::Matrix<float>;
    const castle::Index length = 600, prompt = 512, d_model = 256;

    const castle::Layer<float> layer(
        {.d_model = d_model, .heads = 4, .d_head = 64, .rotary = castle::Rotary{}, .seed = 1},
        {.lookahead_window = 128, .executor = all_processors()});
    const Matrix x = Matrix::Random(length, d_model);

    const Matrix y = layer.forward(x);

    // After reserve, extending by one token into a matrix of yours does not allocate.
    castle::LayerCache<float> cache = layer.make_cache();
    cache.reserve(length);
    Matrix stepwise(length, d_model);
    layer.extend(cache, x.topRows(prompt), stepwise.topRows(prompt));
    for (castle::Index t = prompt; t < length; ++t) {
        layer.extend(cache, x.middleRows(t, 1), stepwise.middleRows(t, 1));
    }

    std::cout << layer.parameters() << " parameters, " << cache.size() << " tokens in a cache of "
              << cache.bytes().owned / 1024 << " KiB\n"
              << "Largest difference between forward and prefill with decoding: "
              << (y - stepwise).cwiseAbs().maxCoeff() << "\n";
}
