// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "language_model/checkpoint.hpp"
#include "language_model/corpus.hpp"
#include "language_model/generate.hpp"
#include "language_model/model.hpp"
#include "language_model/train.hpp"

namespace {

using namespace language_model;

// A folder of a test's own.
class Folder {
  public:
    Folder() {
        const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
        path_ = std::filesystem::temp_directory_path() / fmt::format("castle_{}_{}", test.name(), ::getpid());
        std::filesystem::create_directory(path_);
    }
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    std::string operator/(const std::string& name) const { return (path_ / name).string(); }

  private:
    std::filesystem::path path_;
};

void write_file(const std::string& path, std::string_view bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::vector<Config> small_configs() {
    const Config small{.layers = 2, .d_model = 12, .heads = 4, .d_head = 6, .context = 40};
    Config causal = small, windowed = small, no_silu = small, no_causal_keys = small;
    causal.attention = "causal";
    windowed.attention = "castle-swl";
    windowed.window = 5;
    no_silu.silu = false;
    no_causal_keys.causal_keys = false;
    return {small, causal, windowed, no_silu, no_causal_keys};
}

std::string random_text(Index length, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string text;
    for (Index i = 0; i < length; ++i) text += static_cast<char>(training::below(256, random));
    return text;
}

std::string describe(const Config& c) {
    return c.attention + (c.silu ? "" : " without SiLU") + (c.causal_keys ? "" : " without causal keys");
}

// Along one direction in every matrix, since the loss of a model in single precision is too coarse for single numbers:
// between the gradient, along which there is something to see, and a random one, which the gradient does not know of.
TEST(LanguageModel, HasTheGradientOfCentralDifferences) {
    const std::string text = random_text(41, 1);
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        Model model(config, 3);
        Tape tape = model.make_tape();
        Weights gradient = training::zeros_like(model.weights);
        const double loss = model.learn(text, 0.5F, tape, gradient);
        EXPECT_NEAR(loss, model.loss(text), 1e-5 * loss);

        const training::NamedMatrices weights = model.weights.matrices(), gradients = gradient.matrices();
        std::mt19937_64 random(7);
        for (std::size_t i = 0; i < weights.size(); ++i) {
            SCOPED_TRACE(weights[i].name);
            const Matrix before = *weights[i].matrix, &by_model = *gradients[i].matrix;
            const Matrix other = training::normal_matrix(before.rows(), before.cols(), 1, random).normalized();
            const Matrix direction = (by_model.normalized() + other).normalized();
            constexpr float step = 1e-2F;
            const auto at = [&](float distance) {
                *weights[i].matrix = before + distance * direction;
                model.update();
                return 0.5 * model.loss(text);
            };
            const double slope = (at(step) - at(-step)) / (2 * step);
            const double expected = by_model.cast<double>().cwiseProduct(direction.cast<double>()).sum();
            // The logits are off by some 1e-6, which the 40 losses that they make magnify by 1 / step at most.
            EXPECT_NEAR(slope, expected, 1e-2 * std::abs(expected) + 0.5 * 40 * 1e-6 / step);
            if (config.causal_keys || !weights[i].name.ends_with("causal.k")) {
                EXPECT_GT(std::abs(expected), 0.05) << "too little to see";
            }
            *weights[i].matrix = before;
            model.update();
        }
    }
}

TEST(LanguageModel, GradientsOfSequencesAddUp) {
    const Config config = small_configs().front();
    const Model model(config, 3);
    Tape tape = model.make_tape();
    Weights both = training::zeros_like(model.weights), first = both, second = both;
    const std::string one = random_text(41, 1), other = random_text(30, 2);
    model.learn(one, 1, tape, both);
    model.learn(other, 1, tape, both);
    model.learn(one, 1, tape, first);
    model.learn(other, 1, tape, second);
    training::add(first, second);
    for (std::size_t i = 0; i < both.matrices().size(); ++i) {
        const Matrix &sum = *both.matrices()[i].matrix, &parts = *first.matrices()[i].matrix;
        EXPECT_LE((sum - parts).norm(), 1e-5F * parts.norm()) << both.matrices()[i].name;
    }
}

TEST(LanguageModel, CountsItsParameters) {
    for (const Config& config : small_configs()) {
        Weights weights = initial_weights(config, 1);
        Index count = 0;
        for (const training::NamedMatrix& m : weights.matrices()) count += m.matrix->size();
        EXPECT_EQ(config.parameters(), count) << describe(config);
        EXPECT_EQ(count, small_configs().front().parameters()) << "kinds of attention have as many";
    }
}

TEST(LanguageModel, CachesGiveWhatAWholePassGives) {
    const std::string text = random_text(150, 4);
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        const Model model(config, 5);
        auto caches = model.make_caches();
        Matrix by_cache(150, bytes);
        by_cache.topRows(70) = model.logits(text.substr(0, 70), caches);
        for (Index t = 70; t < 150; ++t) by_cache.row(t) = model.logits(text.substr(std::size_t(t), 1), caches);
        const Matrix at_once = model.logits(text);
        EXPECT_LE((by_cache - at_once).cwiseAbs().maxCoeff(), 1e-4F * at_once.cwiseAbs().maxCoeff());
        EXPECT_EQ(write_on(model, nullptr, text, 60, 0.9, 1, [](char) {}).same, 60);
    }
}

TEST(LanguageModel, NoByteIsPredictedFromItself) {
    std::string text = random_text(60, 6);
    for (const Config& config : small_configs()) {
        const Model model(config, 5);
        const Matrix before = model.logits(text);
        text[40] = static_cast<char>(text[40] + 1);
        const Matrix after = model.logits(text);
        EXPECT_EQ(before.topRows(40), after.topRows(40)) << describe(config);
        EXPECT_NE(before.row(40), after.row(40)) << describe(config);
    }
}

TEST(LanguageModel, DrawsByProbability) {
    const Eigen::RowVectorXf logits{{std::log(1.0F), std::log(2.0F), std::log(5.0F)}};
    for (int i = 0; i < 80; ++i) {
        const double place = (i + 0.5) / 80;
        EXPECT_EQ(byte_at(place, logits, 1), place < 1.0 / 8 ? 0 : place < 3.0 / 8 ? 1 : 2) << place;
        // With a temperature of a half the probabilities are as 1 to 4 to 25.
        EXPECT_EQ(byte_at(place, logits, 0.5), place < 1.0 / 30 ? 0 : place < 5.0 / 30 ? 1 : 2) << place;
        EXPECT_EQ(byte_at(place, logits, 0), 2);
    }
}

// Speculative decoding: whoever guesses, and however badly, the text is the model's.
TEST(LanguageModel, WritesTheSameWithADraft) {
    const std::string prompt = random_text(70, 11);
    const auto ignore = [](char) {};
    constexpr Index count = 100;
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        const Model model(config, 12);
        const Written alone = write_on(model, nullptr, prompt, count, 0.3, 1, ignore);
        EXPECT_EQ(alone.passes, count);
        const Written by_itself = write_on(model, &model, prompt, count, 0.3, 1, ignore);
        EXPECT_EQ(by_itself.bytes, alone.bytes);
        EXPECT_EQ(by_itself.same, count);
        EXPECT_LE(by_itself.passes, count / 7 + 2) << "a model guesses what it would write";
        for (const Config& other : small_configs()) {
            const Model draft(other, 13);
            const Written drafted = write_on(model, &draft, prompt, count, 0.3, 1, ignore);
            EXPECT_EQ(drafted.bytes, alone.bytes);
            EXPECT_EQ(drafted.same, count);
            EXPECT_LE(drafted.passes, count);
        }
    }
}

TEST(LanguageModel, TheLearningRateWarmsUpAndFalls) {
    const Schedule schedule{.steps = 110, .learning_rate = 0.4, .warm_up = 10};
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.04);
    EXPECT_DOUBLE_EQ(schedule.rate(10), 0.4);
    EXPECT_DOUBLE_EQ(schedule.rate(60), 0.22);
    EXPECT_DOUBLE_EQ(schedule.rate(110), 0.04);
    EXPECT_DOUBLE_EQ((Schedule{.steps = 5, .learning_rate = 0.4, .warm_up = 0}.rate(5)), 0.04);
}

TEST(LanguageModel, BatchesAreOfTheTrainingPartAndOfTheirSeedAndStep) {
    const Folder folder;
    const std::string text = random_text(1000, 8);
    write_file(folder / "text", text);
    const Corpus corpus(folder / "text", 40);
    EXPECT_EQ(corpus.training().size() + corpus.validation().size(), 1000U);
    EXPECT_EQ(corpus.validation().size(), 100U);
    const auto batch = corpus.batch(200, 1, 7);
    EXPECT_EQ(batch, corpus.batch(200, 1, 7));
    EXPECT_NE(batch, corpus.batch(200, 2, 7));
    EXPECT_NE(batch, corpus.batch(200, 1, 8));
    for (const std::string_view sequence : batch) {
        EXPECT_EQ(sequence.size(), 41U);
        EXPECT_GE(sequence.data(), corpus.training().data());
        EXPECT_LE(sequence.data() + 41, corpus.validation().data());
    }
    const auto validation = corpus.validation_sequences(all);
    ASSERT_EQ(validation.size(), 2U);
    EXPECT_EQ(validation[0].front(), corpus.validation()[0]);
    EXPECT_EQ(validation[0].back(), validation[1].front());
    EXPECT_EQ(corpus.validation_sequences(1).size(), 1U);
}

Training small_training(const Corpus& corpus, Config config) {
    return {{.steps = 6, .batch = 5, .warm_up = 2, .seed = 9, .text = corpus.fingerprint()}, config};
}

std::string contents(const std::string& path) { return read_file(path, Index(1) << 30); }

TEST(LanguageModel, TrainingLearns) {
    const Folder folder;
    std::string text;
    while (text.size() < 2000) text += "the same again, ";
    write_file(folder / "text", text);
    const Corpus corpus(folder / "text", 40);
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        Training training = small_training(corpus, config);
        training.schedule.steps = 60;
        training.schedule.learning_rate = 2e-2;
        const double before = mean_loss(training.model, corpus.validation_sequences(all));
        EXPECT_NEAR(before, std::log(256.0), 1);
        Trainer(training, corpus, {.checkpoint = folder / "model"}).run();
        EXPECT_LT(mean_loss(training.model, corpus.validation_sequences(all)), 0.7);
    }
}

void set_threads([[maybe_unused]] int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
}

// A checkpoint has everything, or what comes after it would differ.
TEST(LanguageModel, ResumesExactlyOnAnyNumberOfThreads) {
    const Folder folder;
    write_file(folder / "text", random_text(3000, 10));
    const Corpus corpus(folder / "text", 40);
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        set_threads(3);
        Training whole = small_training(corpus, config);
        Trainer(whole, corpus, {.checkpoint = folder / "whole", .save_every = 1}).run();

        set_threads(1);
        Training part = small_training(corpus, config);
        Trainer trainer(part, corpus, {.checkpoint = folder / "part"});
        for (int i = 0; i < 3; ++i) trainer.step();
        save(folder / "part", part);

        set_threads(2);
        Training resumed = load(folder / "part");
        EXPECT_EQ(resumed.step(), 3);
        Trainer(resumed, corpus, {.checkpoint = folder / "part"}).run();
        EXPECT_EQ(resumed.step(), 6);
        EXPECT_EQ(contents(folder / "part"), contents(folder / "whole"));
    }
}

TEST(LanguageModel, ATrainingThatDivergesEndsBeforeItIsSaved) {
    const Folder folder;
    write_file(folder / "text", random_text(3000, 10));
    const Corpus corpus(folder / "text", 40);
    Training training = small_training(corpus, small_configs().front());
    training.schedule.learning_rate = 1e30;
    EXPECT_THROW(Trainer(training, corpus, {.checkpoint = folder / "model"}).run(), BadInput);
    EXPECT_FALSE(std::filesystem::exists(folder / "model"));
}

TEST(LanguageModel, LogsWhatItLosesOnce) {
    const Folder folder;
    write_file(folder / "text", random_text(3000, 10));
    const Corpus corpus(folder / "text", 40);
    Training training = small_training(corpus, small_configs().front());
    Trainer(training, corpus,
            {.checkpoint = folder / "model",
             .log = folder / "log",
             .save_every = 2,
             .report_every = 3,
             .validate_every = 4})
        .run();
    std::ifstream log(folder / "log");
    std::vector<std::string> steps;
    for (std::string line; std::getline(log, line);) steps.push_back(line.substr(0, line.find(',')));
    EXPECT_EQ(steps, (std::vector<std::string>{"step", "2", "3", "4", "6"}));

    Training again = small_training(corpus, small_configs().front());
    EXPECT_THROW(Trainer(again, corpus, {.checkpoint = folder / "model", .log = folder / "log"}), BadInput);
}

std::string small_checkpoint(const std::string& path) {
    Config config = small_configs().front();
    config.layers = 1;
    Training training({.text = "0"}, config);
    save(path, training);
    return contents(path);
}

TEST(LanguageModel, RefusesCheckpointsWithOtherNumbersThanTheirModels) {
    const Folder folder;
    const std::string whole = small_checkpoint(folder / "model");
    EXPECT_NO_THROW(load(folder / "model"));
    const auto refused = [&](const std::string& from, const std::string& to) {
        ASSERT_EQ(from.size(), to.size());
        const std::size_t place = whole.find(from);
        ASSERT_NE(place, std::string::npos) << from;
        std::string changed = whole;
        changed.replace(place, to.size(), to);
        write_file(folder / "changed", changed);
        EXPECT_THROW(load(folder / "changed"), BadInput) << to;
    };
    refused("\"layers\":\"1\"", "\"layers\":\"2\"");
    refused("\"layers\":\"1\"", "\"layers\":\"0\"");
    refused("\"layers\":\"1\"", "\"layers\":\"x\"");
    refused("\"heads\":\"4\"", "\"heads\":\"8\"");
    refused("\"heads\":\"4\"", "\"heads\":\"5\"");
    refused("\"d_model\":\"12\"", "\"d_model\":\"1 \"");
    refused("\"d_model\":\"12\"", "\"d_model\":\"99\"");
    refused("\"attention\":\"castle\"", "\"attention\":\"dense!\"");
    refused("language_model 1", "language_model 2");
    std::string nan = whole;
    nan.replace(nan.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));
    write_file(folder / "nan", nan);
    EXPECT_THROW(load(folder / "nan"), BadInput);
}

}  // namespace
