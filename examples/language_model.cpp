// SPDX-License-Identifier: Apache-2.0

// A small language model of bytes, LLaMA-style, with the attention of your choice: train it on a text of yours,
// evaluate it, and have it write.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
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

namespace {

using namespace language_model;

constexpr Index many = Index(1) << 30;

struct Arguments {
    std::string text;
    Config config;
    Schedule schedule;
    TrainOptions train;
    bool resume = false;
    std::string prompt = "\n";
    Index count = 500;
    double temperature = 0.8;
    Index seed = 1;
};

CLI::Option* number(CLI::App& app, const std::string& name, Index& value, Index least, Index most,
                    const std::string& help) {
    return app.add_option(name, value, help)
        ->check(CLI::Range(least, most).description(fmt::format("{} to {}", least, most)))
        ->type_name("N")
        ->capture_default_str();
}

void describe(const Training& training) {
    const Config& c = training.model.config();
    fmt::print("{} attention{}, {} layers, d_model {}, {} heads of {}, {} parameters\n", c.attention,
               c.attention == "castle-swl" ? fmt::format(" with a window of {}", c.window) : "", c.layers, c.d_model,
               c.attention_heads(), c.d_head, c.parameters());
}

void train(const Arguments& arguments) {
    const std::string& checkpoint = arguments.train.checkpoint;
    if (!arguments.resume && std::filesystem::exists(checkpoint)) {
        throw BadInput(fmt::format("\"{}\" is there already; --resume goes on with it", checkpoint));
    }
    Training training = arguments.resume ? load(checkpoint) : Training(arguments.schedule, arguments.config);
    const Corpus corpus(arguments.text, training.model.config().context);
    const std::string fingerprint = corpus.fingerprint();
    if (arguments.resume && training.schedule.text != fingerprint) {
        throw BadInput(fmt::format("\"{}\" is not the text that this training began with", arguments.text));
    }
    training.schedule.text = fingerprint;
    Trainer trainer(training, corpus, arguments.train);
    if (!arguments.resume) save(checkpoint, training);  // what cannot be written shows now rather than after a while

    describe(training);
    if (arguments.resume) fmt::print("going on after step {} of {}\n", training.step(), training.schedule.steps);
    std::fflush(stdout);
    trainer.run();
    fmt::print("the model is in {}\n", checkpoint);
}

void evaluate(const Arguments& arguments) {
    const Training training = load(arguments.train.checkpoint);
    const Corpus corpus(arguments.text, training.model.config().context);
    describe(training);
    const double loss = mean_loss(training.model, corpus.validation_sequences(all));
    fmt::print("validation loss {:.6f}, perplexity {:.4f}\n", loss, std::exp(loss));
}

void generate(const Arguments& arguments) {
    const Training training = load(arguments.train.checkpoint);
    if (arguments.prompt.empty()) throw BadInput("--prompt is empty but has to have a byte at least");
    const auto put = [](char c) {
        std::fputc(c, stdout);
        std::fflush(stdout);
    };
    for (const char c : arguments.prompt) put(c);
    const Written written = write_on(training.model, arguments.prompt, arguments.count, arguments.temperature,
                                     static_cast<std::uint64_t>(arguments.seed), put);
    put('\n');
    fmt::print(stderr, "cache and whole pass agree on the next byte at {} of {} places\n", written.same,
               arguments.count);
    if (written.same != arguments.count) throw BadInput("the cache and the whole pass disagree");
}

int run(int argc, char** argv) {
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
    const auto size = [&](const std::string& name, Index& value, Index least, Index most, const std::string& help) {
        new_model.push_back(number(*training, name, value, least, most, help));
    };
    size("--window", a.config.window, 0, many, "Lookahead window of castle-swl");
    size("--layers", a.config.layers, 1, 1000, "Blocks");
    size("--d_model", a.config.d_model, 1, 65536, "Numbers in a byte's vector");
    size("--heads", a.config.heads, 4, 65536, "Heads of CASTLE, a multiple of 4; causal attention gets 7/4 of them");
    size("--d_head", a.config.d_head, 2, 65536, "Numbers in a head's queries, keys and values, even");
    size("--context", a.config.context, 1, 1 << 20, "Bytes that it is trained on at once");
    size("--steps", a.schedule.steps, 1, many, "Steps of the whole training");
    size("--batch", a.schedule.batch, 1, 65536, "Sequences in a step");
    size("--warm_up", a.schedule.warm_up, 0, many, "Steps until the learning rate is whole");
    Index seed = 1;
    size("--seed", seed, 0, 4294967295, "Of the weights and the order of the text");
    new_model.push_back(training->add_option("--learning_rate", a.schedule.learning_rate, "At its highest")
                            ->check(CLI::Range(1e-8, 1.0))
                            ->capture_default_str());
    new_model.push_back(training->add_flag("!--no-silu", a.config.silu, "Leaves the SiLU out of the scores"));
    new_model.push_back(
        training->add_flag("!--no-causal_keys", a.config.causal_keys, "Leaves the causal keys out of the scores"));
    for (CLI::Option* option : new_model) resume->excludes(option);
    number(*training, "--save_every", a.train.save_every, 1, many, "Steps between checkpoints");
    training->add_option("--log", a.train.log, "Writes the losses into this CSV file");

    CLI::App* evaluation = app.add_subcommand("evaluate", "The loss of a model on a text's validation part");
    text(evaluation);
    checkpoint(evaluation);

    CLI::App* generation = app.add_subcommand("generate", "Has a model write on from a prompt");
    checkpoint(generation);
    generation->add_option("--prompt", a.prompt, "What it goes on from; a line's end unless given");
    number(*generation, "--bytes", a.count, 1, 65536, "How much it writes");
    number(*generation, "--seed", a.seed, 0, 4294967295, "Of what is drawn");
    generation->add_option("--temperature", a.temperature, "0 takes the most probable byte each time")
        ->check(CLI::Range(0.0, 100.0))
        ->capture_default_str();
    if (!parse_command_line(app, argc, argv)) return 0;
    a.schedule.seed = static_cast<std::uint64_t>(seed);
    if (const std::string problem = a.config.problem(); !problem.empty()) throw BadInput("--" + problem);
    if (!std::isfinite(a.schedule.learning_rate) || !std::isfinite(a.temperature)) {
        throw BadInput("--learning_rate and --temperature have to be numbers");
    }
    if (*training) train(a);
    if (*evaluation) evaluate(a);
    if (*generation) generate(a);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("language_model", [&] { return run(argc, argv); });
}
