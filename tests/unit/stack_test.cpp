// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

// Sanitizers keep books of their own on the stack, and code that is not optimised keeps everything there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CASTLE_TEST_INSTRUMENTED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define CASTLE_TEST_INSTRUMENTED
#endif
#endif

#if defined(__linux__) && defined(__OPTIMIZE__) && !defined(CASTLE_TEST_INSTRUMENTED)
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"

// The stack that executor.hpp promises to be enough for a thread that calls the library, or works for one that does.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
constexpr std::size_t promised = (sizeof(castle::Compute<T>) == 4 ? 64 : 128) * 1024;

// A stack on which it can be seen how far down a thread has written.
class PaintedStack {
  public:
    PaintedStack()
        : memory_(static_cast<unsigned char*>(
              mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0))) {}
    PaintedStack(const PaintedStack&) = delete;
    PaintedStack& operator=(const PaintedStack&) = delete;
    ~PaintedStack() { munmap(memory_, size); }

    /// Bytes of stack that a thread needs for `work()`, with what the system puts there.
    template <class F>
    std::size_t need(const F& work) {
        std::fill_n(memory_, size, paint);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstack(&attributes, memory_, size);
        pthread_t thread{};
        const auto start = [](void* f) -> void* {
            (*static_cast<const F*>(f))();
            return nullptr;
        };
        const int error = pthread_create(&thread, &attributes, start, const_cast<F*>(&work));
        pthread_attr_destroy(&attributes);
        EXPECT_EQ(error, 0);
        if (error == 0) pthread_join(thread, nullptr);
        return size - std::size_t(std::find_if(memory_, memory_ + size, [](auto x) { return x != paint; }) - memory_);
    }

  private:
    static constexpr std::size_t size = std::size_t(8) << 20;
    static constexpr unsigned char paint = 0xa5;

    unsigned char* memory_;
};

template <class T>
class Stack : public ::testing::Test {
  protected:
    void TearDown() override { this->RecordProperty("bytes", std::to_string(most_)); }

    // Whether `work` gets by with what is promised.
    template <class F>
    void expect_enough(const std::string& what, const F& work) {
        const std::size_t need = stack_.need(work);
        EXPECT_LE(need, promised<T>) << what;
        most_ = std::max(most_, need);
    }

  private:
    PaintedStack stack_;
    std::size_t most_ = 0;
};
TYPED_TEST_SUITE(Stack, support::Scalars);

TYPED_TEST(Stack, IsPaintedAndRead) {
    constexpr std::size_t size = promised<TypeParam>;
    PaintedStack stack;
    EXPECT_LT(stack.need([] {}), size / 2);
    const std::size_t need = stack.need([] {
        volatile unsigned char buffer[size];
        for (volatile unsigned char& x : buffer) x = 1;
    });
    EXPECT_GE(need, size);
    EXPECT_LT(need, size * 3 / 2);
}

TYPED_TEST(Stack, OfAThreadIsEnoughForAHead) {
    using T = TypeParam;
    Random random(4200);
    for (const Index d : {64, 128}) {
        const Head<T> head = random_head<T>(random, {.length = 200, .d = d, .dv = d});
        Matrix<castle::Compute<T>> d_out(200, d);
        Matrix<T> out(200, d);
        fill_normal(random, d_out);
        for (const Index window : {Index(0), Index(100), castle::unlimited}) {
            const std::string what = describe("d ", d, ", window ", window);
            const castle::Options options{.lookahead_window = window};
            castle::UqKvCache<T> cache(shape_of(head), options);
            castle::Workspace<T> workspace(shape_of(head), options);
            castle::Gradient<castle::Compute<T>> gradient;
            this->expect_enough("forward, " + what, [&] {
                castle::extend(cache, head.first_tokens(150), castle::MatrixView<T>(out).middle_rows(0, 150));
                for (Index t = 150; t < 200; ++t) {
                    castle::extend(cache, head.input().tokens(t, 1), castle::MatrixView<T>(out).middle_rows(t, 1));
                }
                cache.rollback(40);
            });
            this->expect_enough("backward, " + what, [&] {
                castle::forward(workspace, head.input(), out);
                gradient = castle::backward(workspace, head.input(), d_out);
            });
        }
    }
}

TYPED_TEST(Stack, OfAThreadIsEnoughForHeadsSideBySide) {
    using T = TypeParam;
    Random random(4205);
    for (const Index d : {64, 128}) {
        const castle::Shape shape{.d = d, .dv = d, .heads = 4, .kv_heads = 2};
        const Head<T> heads = random_heads<T>(random, 200, shape);
        Matrix<castle::Compute<T>> d_out(200, 4 * d);
        Matrix<T> out(200, 4 * d);
        fill_normal(random, d_out);
        const std::vector<Index> counts = {140, 0, 60};
        for (const Index window : {Index(0), Index(100), castle::unlimited}) {
            const std::string what = describe("d ", d, ", window ", window);
            const castle::Options options{.lookahead_window = window};
            std::vector<castle::UqKvCache<T>> caches;
            std::vector<castle::UqKvCache<T>*> batch;
            for (int i = 0; i < 3; ++i) caches.emplace_back(shape, options);
            for (auto& cache : caches) batch.push_back(&cache);
            castle::Workspace<T> workspace(shape, options);
            castle::Gradient<castle::Compute<T>> gradient;
            this->expect_enough("forward, " + what, [&] {
                castle::extend(batch, counts, heads.input(), out);
                castle::extend(caches[1], heads.first_tokens(1), castle::MatrixView<T>(out).middle_rows(0, 1));
            });
            this->expect_enough("backward, " + what, [&] {
                castle::forward(workspace, counts, heads.input(), out);
                gradient = castle::backward(workspace, heads.input(), d_out);
            });
        }
    }
}

TYPED_TEST(Stack, OfAThreadIsEnoughForALayer) {
    using T = TypeParam;
    Random random(4210);
    for (const Index d_head : {64, 128}) {
        const std::string what = describe("d_head ", d_head);
        const castle::Layer<T> layer(
            {.d_model = 200, .heads = 4, .kv_heads = 2, .d_head = d_head, .rotary = castle::Rotary{}});
        Matrix<T> x(150, 200), y(150, 200);
        Matrix<castle::Compute<T>> d_y(150, 200);
        fill_normal(random, x);
        fill_normal(random, d_y);
        std::vector<castle::LayerCache<T>> caches;
        std::vector<castle::LayerCache<T>*> batch;
        for (int i = 0; i < 3; ++i) caches.push_back(layer.make_cache());
        for (auto& cache : caches) batch.push_back(&cache);
        const std::vector<Index> one_each = {1, 1, 1}, ragged = {0, 140, 10};
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        castle::LayerGradient<castle::Compute<T>> gradient;
        this->expect_enough("forward, " + what, [&] {
            layer.extend(caches[0], x, y);
            layer.extend(batch, one_each, x.topRows(3), y.topRows(3));
            layer.extend(batch, ragged, x, y);
        });
        this->expect_enough("backward, " + what, [&] {
            layer.forward(workspace, x, y);
            gradient = layer.backward(workspace, x, d_y);
            layer.forward(workspace, ragged, x, y);
            gradient = layer.backward(workspace, ragged, x, d_y);
        });
    }
}

}  // namespace

#else

TEST(Stack, OfAThreadIsEnough) { GTEST_SKIP() << "measured only on Linux, in optimised builds without sanitizers"; }

#endif
