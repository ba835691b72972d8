// SPDX-License-Identifier: Apache-2.0

// A small language model of bytes, LLaMA-style, with the attention of your choice: train it on a text of yours,
// evaluate it, and have it write.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "language_model/checkpoint.hpp"
#include "language_model/config.hpp"
#include "language_model/corpus.hpp"
#include "language_model/generate.hpp"
#include "language_model/train.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"

namespace {

using namespace language_model;

struct Arguments {
    std::string text;
    Config config;
    Schedule schedule;
    TrainOptions train;
    bool resume = false;
    std::string prompt = "\n";
    std::string draft;
    Index count = 500;
    double temperature = 0.8;
    Index seed = 1;
};

CLI::Option* number(CLI::App& app, const std::string& name, Index& value, Limits limits, const std::string& help) {
    return app.add_option(name, value, help)
        ->check(CLI::Range(limits.least, limits.most).description(fmt::format("{} to {}", limits.least, limits.most)))
        ->type_name("N")
        ->capture_default_str();
}

void describe(const Training& training) {
    const Config& c = training.model.config();
    const std::string groups =
        c.group_size() > 1 ? fmt::format(" with {} key-value heads", c.attention_kv_heads()) : "";
    fmt::print("{}, {} layers, d_model {}, {} heads of {}{}, {} parameters\n", c.description(), c.layers, c.d_model,
               c.attention_heads(), c.d_head, groups, c.parameters());
}

// About as many bytes as a training of this takes: weights, moments, a gradient for every sequence, and what its pass
// leaves for its backward pass.
double needed_memory(const Config& c, Index batch) {
    const auto number = [](Index n) { return static_cast<double>(n); };
    const double parameters = number(c.parameters());
    const double token =
        number(c.layers) * number(16 * c.d_model + 8 * c.hidden() + 24 * c.attention_heads() * c.d_head);
    return sizeof(float) * (4 * parameters + number(batch) * (parameters + number(c.context) * (token + 4 * bytes)));
}

// Ranks on one machine share its memory; none takes any before all have looked.
void check_memory_of_ranks(const Ranks& ranks, const Config& config, const Schedule& schedule) {
    const Index most_sequences = (schedule.batch + ranks.size() - 1) / ranks.size();
    const std::string what =
        ranks.size_here() == 1 ? "this training" : fmt::format("{} ranks of this training", ranks.size_here());
    check_memory(what, ranks.size_here() * needed_memory(config, most_sequences));
    ranks.agree();
}

// Ranks that began with another model or text would not fail, but train something that is neither.
void expect_same_on_all(const Ranks& ranks, Training& training, const Corpus& corpus, const std::string& text) {
    if (ranks.size() == 1) return;
    ranks.expect_same(fmt::format("the text \"{}\"", text), fingerprint_of(corpus.fingerprint()));
    ranks.expect_same("the model, or how it is trained,", fingerprint(training));
}

void train(const Arguments& arguments, const Ranks& ranks) {
    const std::string& checkpoint = arguments.train.checkpoint;
    if (ranks.is_first() && !arguments.resume && std::filesystem::exists(checkpoint)) {
        throw BadInput(fmt::format("\"{}\" is there already; --resume goes on with it", checkpoint));
    }
    if (!arguments.resume) check_memory_of_ranks(ranks, arguments.config, arguments.schedule);
    Training training = arguments.resume ? load(checkpoint) : Training(arguments.schedule, arguments.config);
    if (arguments.resume) check_memory_of_ranks(ranks, training.model.config(), training.schedule);
    const Corpus corpus(arguments.text, training.model.config().context);
    const std::string fingerprint = corpus.fingerprint();
    if (arguments.resume && training.schedule.text != fingerprint) {
        throw BadInput(fmt::format("\"{}\" is not the text that this training began with", arguments.text));
    }
    training.schedule.text = fingerprint;
    for (const std::string& other : {arguments.text, checkpoint}) {
        std::error_code unknown;
        if (std::filesystem::equivalent(arguments.train.log, other, unknown)) {
            throw BadInput(fmt::format("--log \"{}\" would be written over \"{}\"", arguments.train.log, other));
        }
    }
    expect_same_on_all(ranks, training, corpus, arguments.text);
    ranks.expect_same("--save_every", static_cast<std::uint64_t>(arguments.train.save_every));
    Trainer trainer(training, corpus, arguments.train, ranks);
    if (ranks.is_first()) {
        // What cannot be written shows now rather than after a while.
        if (!arguments.resume) save(checkpoint, training);
        describe(training);
        if (arguments.resume) fmt::print("going on after step {} of {}\n", training.step(), training.schedule.steps);
        std::fflush(stdout);
    }
    trainer.run();
    if (ranks.is_first()) fmt::print("the model is in {}\n", checkpoint);
}

void evaluate(const Arguments& arguments, const Ranks& ranks) {
    Training training = load(arguments.train.checkpoint);
    const Corpus corpus(arguments.text, training.model.config().context);
    expect_same_on_all(ranks, training, corpus, arguments.text);
    if (ranks.is_first()) describe(training);
    const double loss = mean_loss(training.model, corpus.validation_sequences(all), ranks);
    if (ranks.is_first()) fmt::print("validation loss {:.4f}, perplexity {:.3f}\n", loss, std::exp(loss));
}

void generate(const Arguments& arguments) {
    const Training training = load(arguments.train.checkpoint);
    std::optional<Training> draft;
    if (!arguments.draft.empty()) draft = load(arguments.draft);
    if (arguments.prompt.empty()) throw BadInput("--prompt is empty but has to have a byte at least");
    const auto put = [](char c) {
        std::fputc(c, stdout);
        std::fflush(stdout);
    };
    for (const char c : arguments.prompt) put(c);
    const Written written = write_on(training.model, draft ? &draft->model : nullptr, arguments.prompt, arguments.count,
                                     arguments.temperature, static_cast<std::uint64_t>(arguments.seed), put);
    put('\n');
    if (std::fflush(stdout) != 0) throw BadInput("the text could not be written to the standard output");
    const std::string agreement =
        fmt::format("cache and whole pass agree on the next byte at {} of {} places", written.same, arguments.count);
    if (written.same != arguments.count) throw std::logic_error(agreement);
    fmt::print(stderr, "{}\n", agreement);
    if (draft) fmt::print(stderr, "{} bytes in {} passes of the model\n", arguments.count, written.passes);
}

int run(int argc, char** argv, const Ranks& ranks) {
    Arguments a;
    CLI::App app("A small language model of bytes, with the attention of your choice.", "language_model");
    app.require_subcommand(1);
    const auto checkpoint = [&](CLI::App* sub) {
        sub->add_option("--checkpoint", a.train.checkpoint, "The model, in the safetensors format")->required();
    };
    const auto text = [&](CLI::App* sub) {
        sub->add_option("--text", a.text, "Any file; its last tenth is for validation")->required();
    };

    CLI::App* training = app.add_subcommand("train", "Trains a model on a text");
    text(training);
    checkpoint(training);
    CLI::Option* resume = training->add_flag("--resume", a.resume, "Goes on with the training in the checkpoint");
    std::vector<CLI::Option*> new_model;
    new_model.push_back(training->add_option("--attention", a.config.attention, "What tokens attend with")
                            ->check(CLI::IsMember(attentions))
                            ->capture_default_str());
    const auto size = [&](const std::string& name, Index& value, Limits limits, const std::string& help) {
        return new_model.emplace_back(number(*training, name, value, limits, help));
    };
    CLI::Option* window = size("--window", a.config.window, limits::window,
                               "Lookahead window of castle-swl; with 0 it has no lookahead projections");
    size("--layers", a.config.layers, limits::layers, "Blocks");
    size("--d_model", a.config.d_model, limits::d_model, "Elements of a byte's vector");
    size("--heads", a.config.heads, limits::heads,
         "Heads of CASTLE, a multiple of 4; causal attention gets 7/4 of them");
    size("--kv_heads", a.config.kv_heads, limits::kv_heads,
         "Key-value heads of CASTLE, a divisor of --heads; causal attention gets groups of the same size, as many as "
         "come nearest to CASTLE's parameters")
        ->default_str("as many as heads");
    size("--d_head", a.config.d_head, limits::d_head, "Elements of a head's queries, keys and values, even");
    size("--context", a.config.context, limits::context, "Bytes that it is trained on at once");
    new_model.push_back(
        training
            ->add_option("--precision", a.config.precision, "Of the attention's weights and what it reads and writes")
            ->check(CLI::IsMember(precisions))
            ->capture_default_str());
    size("--steps", a.schedule.steps, limits::steps, "Steps of the whole training");
    size("--batch", a.schedule.batch, limits::batch, "Sequences in a step");
    size("--warm_up", a.schedule.warm_up, {0, limits::steps.most}, "Steps until the learning rate is whole");
    Index seed = 1;
    size("--seed", seed, limits::seed, "Of the weights and the order of the text");
    new_model.push_back(training->add_option("--learning_rate", a.schedule.learning_rate, "At its highest")
                            ->check(CLI::Range(1e-8, 1.0))
                            ->capture_default_str());
    CLI::Option* no_silu = new_model.emplace_back(
        training->add_flag("!--no-silu", a.config.silu, "Leaves the SiLU out of the scores of CASTLE"));
    CLI::Option* no_causal_keys = new_model.emplace_back(training->add_flag(
        "!--no-causal_keys", a.config.causal_keys, "Leaves the causal keys out of the scores of CASTLE"));
    for (CLI::Option* option : new_model) resume->excludes(option);
    number(*training, "--save_every", a.train.save_every, limits::steps, "Steps between checkpoints");
    training->add_option("--log", a.train.log, "Writes the losses into this CSV file");

    CLI::App* evaluation = app.add_subcommand("evaluate", "The loss of a model on a text's validation part");
    text(evaluation);
    checkpoint(evaluation);

    CLI::App* generation = app.add_subcommand("generate", "Has a model write on from a prompt");
    checkpoint(generation);
    generation->add_option("--prompt", a.prompt, "What it goes on from; a line's end unless given");
    generation->add_option("--draft", a.draft, "The checkpoint of a smaller model that guesses ahead; writes the same");
    number(*generation, "--bytes", a.count, {1, 65536}, "How much it writes");
    number(*generation, "--seed", a.seed, limits::seed, "Of what is drawn");
    generation->add_option("--temperature", a.temperature, "0 takes the most probable byte each time")
        ->check(CLI::Range(0.0, 100.0))
        ->capture_default_str();
    std::ostream nowhere(nullptr);
    if (!parse_command_line(app, argc, argv, ranks.is_first() ? std::cout : nowhere)) return 0;
    a.schedule.seed = static_cast<std::uint64_t>(seed);
    if (const std::string problem = a.config.problem(); !problem.empty()) throw BadInput("--" + problem);
    const auto needs = [](CLI::Option* option, bool fits, const std::string& attention) {
        if (option->count() > 0 && !fits) throw BadInput(option->get_name() + " is for --attention " + attention);
    };
    needs(window, a.config.attention == "castle-swl", "castle-swl");
    needs(no_silu, !a.config.is_causal(), "castle and castle-swl");
    needs(no_causal_keys, !a.config.is_causal(), "castle and castle-swl");
    if (!std::isfinite(a.schedule.learning_rate) || !std::isfinite(a.temperature)) {
        throw BadInput("--learning_rate and --temperature have to be numbers");
    }
    ranks.expect_same("the subcommand", fingerprint_of(app.get_subcommands().front()->get_name()));
    if (*training) train(a, ranks);
    if (*evaluation) evaluate(a, ranks);
    // A byte comes after the other: there is nothing to share.
    if (*generation && ranks.is_first()) generate(a);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code_of_ranks("language_model", [&](const Ranks& ranks) { return run(argc, argv, ranks); });
}
