// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numbers>
#include <string>
#include <system_error>

#include <fmt/core.h>

#include "../model/adamw.hpp"
#include "../model/safetensors.hpp"
#include "../model/schedule.hpp"
#include "../support/fingerprint.hpp"
#include "config.hpp"
#include "model.hpp"

namespace language_model {

/// How a model is trained, from the first step to the last.
struct Schedule {
    Index steps = 1000;
    Index batch = 16;  // sequences of a context
    double learning_rate = 4e-3;
    Index warm_up = 100;
    std::uint64_t seed = 1;
    std::string text = {};  // which one, by its fingerprint

    /// Linear warm-up, then a cosine down to a tenth.
    double rate(Index step) const {
        return model::warm_cosine(learning_rate, static_cast<double>(warm_up), static_cast<double>(step),
                                  static_cast<double>(steps));
    }
};

/// A training under way, or one that is done.
struct Training {
    Schedule schedule;
    Model model;
    model::AdamW<Weights> optimizer;

    Training(const Schedule& how, const Config& config)
        : schedule(how), model(config, how.seed), optimizer(model.weights) {}

    Index step() const { return optimizer.steps; }

    /// The weights by their names, and the optimizer's moments.
    model::NamedMatrices matrices() {
        model::NamedMatrices all = model.weights.matrices();
        const auto append = [&](const std::string& prefix, Weights& moments) {
            for (model::NamedMatrix m : moments.matrices()) {
                m.name = prefix + m.name;
                all.push_back(m);
            }
        };
        append("adamw.first.", optimizer.first);
        append("adamw.second.", optimizer.second);
        return all;
    }
};

/// All that a checkpoint says of a training beside its matrices.
inline safetensors::Metadata metadata(const Training& training) {
    const Config& c = training.model.config();
    const Schedule& s = training.schedule;
    return {{"format", "castle language_model 1"},
            {"attention", c.attention},
            {"layers", fmt::format("{}", c.layers)},
            {"d_model", fmt::format("{}", c.d_model)},
            {"heads", fmt::format("{}", c.heads)},
            {"kv_heads", fmt::format("{}", c.groups())},
            {"d_head", fmt::format("{}", c.d_head)},
            {"window", fmt::format("{}", c.window)},
            {"silu", fmt::format("{}", int(c.silu))},
            {"causal_keys", fmt::format("{}", int(c.causal_keys))},
            {"context", fmt::format("{}", c.context)},
            {"precision", c.precision},
            {"steps", fmt::format("{}", s.steps)},
            {"batch", fmt::format("{}", s.batch)},
            {"learning_rate", fmt::format("{}", s.learning_rate)},
            {"warm_up", fmt::format("{}", s.warm_up)},
            {"seed", fmt::format("{}", s.seed)},
            {"text", s.text},
            {"step", fmt::format("{}", training.step())}};
}

inline void save(const std::string& path, Training& training) {
    safetensors::write(path, training.matrices(), metadata(training));
}

/// To tell trainings apart, by all that a checkpoint has of them.
inline std::uint64_t fingerprint(Training& training) {
    std::uint64_t hash = fingerprint_of("");
    for (const auto& [name, value] : metadata(training)) hash = fingerprint_of(name + "=" + value + "\n", hash);
    for (const model::NamedMatrix& m : training.matrices()) {
        const std::size_t size = std::size_t(m.matrix->size()) * sizeof(float);
        hash = fingerprint_of({reinterpret_cast<const char*>(m.matrix->data()), size}, hash);
    }
    return hash;
}

inline Training load(const std::string& path) {
    const safetensors::File file(path);
    if (file.metadata("format") != "castle language_model 1") file.reject("is not one of language_model");
    const auto number = [&](const std::string& name, Limits limits) {
        const std::string text = file.metadata(name);
        Index value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size() || value < limits.least || value > limits.most) {
            file.reject(fmt::format("has no sensible \"{}\"", name));
        }
        return value;
    };
    // Checkpoints from before there were grouped queries have no "kv_heads": as many as heads.
    const bool says_kv_heads = !file.metadata("kv_heads").empty();
    // Those from before there was a choice have no "precision".
    const bool says_precision = !file.metadata("precision").empty();
    Config c{.attention = file.metadata("attention"),
             .layers = number("layers", limits::layers),
             .d_model = number("d_model", limits::d_model),
             .heads = number("heads", limits::heads),
             .kv_heads = says_kv_heads ? number("kv_heads", limits::kv_heads) : 0,
             .d_head = number("d_head", limits::d_head),
             .window = number("window", limits::window),
             .silu = number("silu", {0, 1}) == 1,
             .causal_keys = number("causal_keys", {0, 1}) == 1,
             .context = number("context", limits::context),
             .precision = says_precision ? file.metadata("precision") : "float"};
    if (std::find(attentions.begin(), attentions.end(), c.attention) == attentions.end()) {
        file.reject("has an attention that is not known");
    }
    if (std::find(precisions.begin(), precisions.end(), c.precision) == precisions.end()) {
        file.reject("has a precision that is not known");
    }
    if (const std::string problem = c.problem(); !problem.empty()) file.reject("cannot be used: its " + problem);
    // Nothing is allocated by what the file says before it is known to hold as much.
    if (file.count() != 3 * c.parameters()) file.reject("does not have as many elements as its model");
    const std::string rate = file.metadata("learning_rate");
    char* rate_end = nullptr;
    Schedule s{.steps = number("steps", limits::steps),
               .batch = number("batch", limits::batch),
               .learning_rate = std::strtod(rate.c_str(), &rate_end),
               .warm_up = number("warm_up", {0, limits::steps.most}),
               .seed = static_cast<std::uint64_t>(number("seed", limits::seed)),
               .text = file.metadata("text")};
    if (rate.empty() || *rate_end != '\0' || !(s.learning_rate > 0 && std::isfinite(s.learning_rate))) {
        file.reject("has no sensible \"learning_rate\"");
    }
    Training training(s, c);
    file.read(training.matrices());
    for (const model::NamedMatrix& m : training.matrices()) {
        if (!m.matrix->allFinite()) file.reject(fmt::format("has elements in \"{}\" that are not finite", m.name));
    }
    training.optimizer.steps = number("step", {0, s.steps});
    training.model.update();
    return training;
}

}  // namespace language_model
