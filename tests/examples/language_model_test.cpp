// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
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
    Config causal = small, windowed = small, no_silu = small, no_causal_keys = small, grouped = small;
    causal.attention = "causal";
    windowed.attention = "castle-swl";
    windowed.window = 5;
    no_silu.silu = false;
    no_causal_keys.causal_keys = false;
    grouped.kv_heads = 2;
    Config grouped_causal = grouped;
    grouped_causal.attention = "causal";
    return {small, causal, windowed, no_silu, no_causal_keys, grouped, grouped_causal};
}

// And those whose attention is of 16-bit scalars.
std::vector<Config> all_configs() {
    std::vector<Config> all = small_configs();
    for (Config config : {all[0], all[1], all[2]}) {
        config.precision = "bfloat16";
        all.push_back(config);
    }
    return all;
}

std::string random_text(Index length, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string text;
    for (Index i = 0; i < length; ++i) text += static_cast<char>(model::below(256, random));
    return text;
}

std::string describe(const Config& c) {
    return c.attention + (c.silu ? "" : " without SiLU") + (c.causal_keys ? "" : " without causal keys") +
           (c.kv_heads == 0 ? "" : fmt::format(" with {} key-value heads", c.kv_heads)) + " in " + c.precision;
}

// Along one direction in every matrix, since the loss of a model in single precision is too coarse for single elements:
// between the gradient, along which there is something to see, and a random one, which the gradient does not know of.
TEST(LanguageModel, HasTheGradientOfCentralDifferences) {
    const std::string text = random_text(41, 1);
    for (const Config& config : small_configs()) {
        SCOPED_TRACE(describe(config));
        Model model(config, 3);
        Tape tape = model.make_tape();
        Weights gradient = model::zeros_like(model.weights);
        const double loss = model.learn(text, 0.5F, tape, gradient);
        EXPECT_NEAR(loss, model.loss(text), 1e-5 * loss);

        const model::NamedMatrices weights = model.weights.matrices(), gradients = gradient.matrices();
        std::mt19937_64 random(7);
        for (std::size_t i = 0; i < weights.size(); ++i) {
            SCOPED_TRACE(weights[i].name);
            const Matrix before = *weights[i].matrix, &by_model = *gradients[i].matrix;
            const Matrix other = model::normal_matrix(before.rows(), before.cols(), 1, random).normalized();
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

// That of a model in float, but for the rounding of what the attention reads, stores and writes, in each of two blocks.
TEST(LanguageModel, InSixteenBitsHasNearlyTheGradientOfFloat) {
    const std::string text = random_text(41, 1);
    for (const Config& config : all_configs()) {
        if (config.precision == "float") continue;
        SCOPED_TRACE(describe(config));
        Config in_float = config;
        in_float.precision = "float";
        const auto gradient_of = [&](const Config& c) {
            const Model model(c, 3);
            Tape tape = model.make_tape();
            Weights gradient = model::zeros_like(model.weights);
            model.learn(text, 0.5F, tape, gradient);
            return gradient;
        };
        Weights rounded = gradient_of(config), exact = gradient_of(in_float);
        const model::NamedMatrices ours = rounded.matrices(), theirs = exact.matrices();
        for (std::size_t i = 0; i < ours.size(); ++i) {
            const float off = (*ours[i].matrix - *theirs[i].matrix).norm() / theirs[i].matrix->norm();
            EXPECT_LE(off, 16 * 0x1p-8) << ours[i].name;
            EXPECT_GT(off, 0) << ours[i].name;
        }
    }
}

TEST(LanguageModel, GradientsOfSequencesAddUp) {
    const Config config = small_configs().front();
    const Model model(config, 3);
    Tape tape = model.make_tape();
    Weights both = model::zeros_like(model.weights), first = both, second = both;
    const std::string one = random_text(41, 1), other = random_text(30, 2);
    model.learn(one, 1, tape, both);
    model.learn(other, 1, tape, both);
    model.learn(one, 1, tape, first);
    model.learn(other, 1, tape, second);
    model::add(first, second);
    for (std::size_t i = 0; i < both.matrices().size(); ++i) {
        const Matrix &sum = *both.matrices()[i].matrix, &parts = *first.matrices()[i].matrix;
        EXPECT_LE((sum - parts).norm(), 1e-5F * parts.norm()) << both.matrices()[i].name;
    }
}

Index count_parameters(const Config& config) {
    Weights weights = initial_weights(config, 1);
    Index count = 0;
    for (const model::NamedMatrix& m : weights.matrices()) count += m.matrix->size();
    return count;
}

TEST(LanguageModel, CountsItsParameters) {
    for (const Config& config : small_configs()) {
        EXPECT_EQ(config.parameters(), count_parameters(config)) << describe(config);
        Config castle = small_configs().front();
        castle.kv_heads = config.kv_heads;
        EXPECT_EQ(config.parameters(), castle.parameters()) << "kinds of attention have as many";
    }
    Config no_window = small_configs().front(), castle = no_window;
    no_window.attention = "castle-swl";
    no_window.window = 0;
    EXPECT_EQ(no_window.parameters(), count_parameters(no_window)) << "without lookahead projections";
    EXPECT_LT(no_window.parameters(), castle.parameters());
}

TEST(LanguageModel, StandardAttentionHasTheHeadsForEqualParameters) {
    const auto causal = [](Index heads, Index kv_heads) {
        return Config{.attention = "causal", .heads = heads, .kv_heads = kv_heads};
    };
    const auto castle = [](Index heads, Index kv_heads) { return Config{.heads = heads, .kv_heads = kv_heads}; };
    const auto expect_equal = [&](Index heads, Index kv_heads, Index expected_heads, Index expected_kv_heads) {
        const Config c = causal(heads, kv_heads);
        EXPECT_EQ(c.attention_heads(), expected_heads) << heads << " heads, " << kv_heads << " key-value heads";
        EXPECT_EQ(c.attention_kv_heads(), expected_kv_heads) << heads << " heads, " << kv_heads << " key-value heads";
        EXPECT_EQ(c.parameters(), castle(heads, kv_heads).parameters());
    };
    expect_equal(4, 0, 7, 7);
    expect_equal(8, 0, 14, 14);
    expect_equal(8, 8, 14, 14);
    expect_equal(4, 2, 6, 3);
    expect_equal(8, 4, 12, 6);
    expect_equal(40, 10, 52, 13);
    expect_equal(48, 6, 56, 7);
    for (Index heads = 4; heads <= 64; heads += 4) {
        for (Index kv_heads = 1; kv_heads <= heads; ++kv_heads) {
            if (heads % kv_heads != 0) continue;
            SCOPED_TRACE(fmt::format("{} heads, {} key-value heads", heads, kv_heads));
            const Config c = causal(heads, kv_heads);
            const Index group_size = heads / kv_heads;
            EXPECT_EQ(c.attention_heads(), group_size * c.attention_kv_heads());
            const Index group_parameters = c.layers * (2 * group_size + 2) * c.d_head * c.d_model;
            const Index difference = c.parameters() - castle(heads, kv_heads).parameters();
            EXPECT_LE(2 * std::abs(difference), group_parameters) << "another number of groups would be nearer";
        }
    }
}

TEST(LanguageModel, SaysWhichKeyValueHeadsDoNotFit) {
    for (const char* attention : {"castle", "causal"}) {
        for (Index kv_heads = 1; kv_heads <= 9; ++kv_heads) {
            const std::string problem = Config{.attention = attention, .heads = 8, .kv_heads = kv_heads}.problem();
            EXPECT_EQ(problem, 8 % kv_heads == 0
                                   ? ""
                                   : fmt::format("kv_heads is {} but must divide the number of heads, 8", kv_heads));
        }
    }
}

// Grouped queries are as if every query head had a copy of its group's keys and values.
TEST(LanguageModel, GroupedHeadsShareKeysAndValues) {
    const std::string text = random_text(60, 14);
    Config grouped_config = small_configs().front();
    grouped_config.kv_heads = 2;
    for (const char* attention : {"castle", "castle-swl"}) {
        SCOPED_TRACE(attention);
        grouped_config.attention = attention;
        grouped_config.window = 5;
        Config config = grouped_config;
        config.kv_heads = 0;
        Model grouped(grouped_config, 3), copied(config, 4);
        const model::NamedMatrices from = grouped.weights.matrices(), to = copied.weights.matrices();
        ASSERT_EQ(from.size(), to.size());
        Index shared = 0;
        for (std::size_t i = 0; i < to.size(); ++i) {
            ASSERT_EQ(from[i].name, to[i].name);
            if (from[i].matrix->cols() == to[i].matrix->cols()) {
                *to[i].matrix = *from[i].matrix;
                continue;
            }
            const Index d = config.d_head;
            ASSERT_EQ(from[i].matrix->cols(), 2 * d) << from[i].name;
            for (Index h = 0; h < 4; ++h) {
                to[i].matrix->middleCols(h * d, d) = from[i].matrix->middleCols(h / 2 * d, d);
            }
            ++shared;
        }
        EXPECT_EQ(shared, 5 * config.layers) << "all projections but the causal queries";
        copied.update();
        const Matrix by_groups = grouped.logits(text), by_copies = copied.logits(text);
        EXPECT_LE((by_groups - by_copies).cwiseAbs().maxCoeff(), 1e-5F * by_copies.cwiseAbs().maxCoeff());
    }
}

TEST(LanguageModel, CachesGiveWhatAWholePassGives) {
    const std::string text = random_text(150, 4);
    for (const Config& config : all_configs()) {
        SCOPED_TRACE(describe(config));
        const Model model(config, 5);
        auto caches = model.make_caches();
        Matrix by_cache(150, bytes);
        by_cache.topRows(70) = model.logits(text.substr(0, 70), caches);
        for (Index t = 70; t < 150; ++t) by_cache.row(t) = model.logits(text.substr(std::size_t(t), 1), caches);
        const Matrix at_once = model.logits(text);
        EXPECT_LE((by_cache - at_once).cwiseAbs().maxCoeff(), config.rounding() * at_once.cwiseAbs().maxCoeff());
        EXPECT_EQ(write_on(model, nullptr, text, 60, 0.9, 1, [](char) {}).same, 60);
    }
}

TEST(LanguageModel, NoByteIsPredictedFromItself) {
    std::string text = random_text(60, 6);
    for (const Config& config : all_configs()) {
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
    for (const Config& config : all_configs()) {
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
    for (const Config& config : all_configs()) {
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
    for (const Config& config : all_configs()) {
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

std::string small_checkpoint(const std::string& path, Index kv_heads = 0) {
    Config config = small_configs().front();
    config.layers = 1;
    config.kv_heads = kv_heads;
    Training training({.text = "0"}, config);
    save(path, training);
    return contents(path);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const std::size_t place = text.find(from);
    EXPECT_NE(place, std::string::npos) << from;
    EXPECT_EQ(from.size(), to.size());
    return place == std::string::npos ? text : text.replace(place, from.size(), to);
}

TEST(LanguageModel, AsManyKeyValueHeadsAsHeadsUnlessGiven) {
    const Folder folder;
    const std::string by_default = small_checkpoint(folder / "default");
    EXPECT_EQ(small_checkpoint(folder / "four", 4), by_default);
    EXPECT_NE(small_checkpoint(folder / "two", 2), by_default);
    EXPECT_EQ(load(folder / "default").model.config().attention_kv_heads(), 4);
    EXPECT_EQ(load(folder / "two").model.config().attention_kv_heads(), 2);
}

// Their header had no "kv_heads".
TEST(LanguageModel, ReadsCheckpointsFromBeforeGroupedQueries) {
    const Folder folder;
    const std::string whole = small_checkpoint(folder / "model");
    write_file(folder / "before", replaced(whole, "\"kv_heads\"", "\"no_heads\""));
    Training training = load(folder / "before");
    EXPECT_EQ(training.model.config().attention_kv_heads(), 4);
    save(folder / "again", training);
    EXPECT_EQ(contents(folder / "again"), whole);

    const std::string grouped = small_checkpoint(folder / "grouped", 2);
    write_file(folder / "grouped_before", replaced(grouped, "\"kv_heads\"", "\"no_heads\""));
    EXPECT_THROW(load(folder / "grouped_before"), BadInput) << "there were no such checkpoints";
}

TEST(LanguageModel, RejectsCheckpointsWithOtherSizesThanTheirModels) {
    const Folder folder;
    const std::string whole = small_checkpoint(folder / "model");
    EXPECT_NO_THROW(load(folder / "model"));
    const auto rejected = [&](const std::string& from, const std::string& to) {
        write_file(folder / "changed", replaced(whole, from, to));
        EXPECT_THROW(load(folder / "changed"), BadInput) << to;
    };
    rejected("\"layers\":\"1\"", "\"layers\":\"2\"");
    rejected("\"layers\":\"1\"", "\"layers\":\"0\"");
    rejected("\"layers\":\"1\"", "\"layers\":\"x\"");
    rejected("\"heads\":\"4\"", "\"heads\":\"8\"");
    rejected("\"heads\":\"4\"", "\"heads\":\"5\"");
    rejected("\"kv_heads\":\"4\"", "\"kv_heads\":\"2\"");
    rejected("\"kv_heads\":\"4\"", "\"kv_heads\":\"3\"");
    rejected("\"kv_heads\":\"4\"", "\"kv_heads\":\"8\"");
    rejected("\"kv_heads\":\"4\"", "\"kv_heads\":\"0\"");
    rejected("\"kv_heads\":\"4\"", "\"kv_heads\":\"x\"");
    rejected("\"d_model\":\"12\"", "\"d_model\":\"1 \"");
    rejected("\"d_model\":\"12\"", "\"d_model\":\"99\"");
    rejected("\"attention\":\"castle\"", "\"attention\":\"dense!\"");
    rejected("language_model 1", "language_model 2");
    std::string nan = whole;
    nan.replace(nan.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));
    write_file(folder / "nan", nan);
    EXPECT_THROW(load(folder / "nan"), BadInput);
}

}  // namespace
