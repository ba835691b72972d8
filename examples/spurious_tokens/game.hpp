// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "../model/matrices.hpp"
#include "../support/read_file.hpp"

// The spurious token game (arXiv:2509.01535): eight attributes of a made-up person in any order, and a risk. Three of
// them cause it; three follow a cause in training but not out of distribution; two mean nothing.
namespace spurious_tokens {

using model::below;
using model::Index;

inline constexpr std::array<const char*, 8> attributes = {"Smoking",       "Weight",   "Exercise",     "Yellow fingers",
                                                          "Clothing size", "Hormones", "Certain gene", "Room size"};
inline constexpr Index causes = 3;  // the first of them
inline constexpr std::array<const char*, 3> risks = {"Low Risk", "Middle Risk", "High Risk"};
inline constexpr Index most_value = 15;

struct Phrase {
    Index attribute = 0;
    Index value = 0;

    bool is_cause() const { return attribute < causes; }
    bool is_spurious() const { return attribute >= causes && attribute < 2 * causes; }
};

struct Person {
    std::array<Phrase, attributes.size()> phrases;  // in the order in which they are told
    Index risk = 0;
};

/// Smoking and weight raise the risk, exercise lowers it. In the published data the one risk of 2.7 that doubles have
/// exactly is in the middle, which happens to three in a thousand.
inline Index risk_of(Index smoking, Index weight, Index exercise) {
    const double risk = 1.2 * double(smoking) + 0.7 * double(weight) - double(exercise);
    return risk > 7.2 + 1e-9 ? 2 : risk == 2.7 ? 1 : 0;
}

/// In distribution yellow fingers follow smoking, clothing follows weight and hormones follow exercise; out of
/// distribution each attribute is drawn by itself.
inline Person random_person(bool in_distribution, std::mt19937_64& bits) {
    const auto draw = [&] { return 1 + below(10, bits); };
    std::array<Index, attributes.size()> value{};
    for (Index& v : value) v = draw();
    if (in_distribution) {
        value[3] = value[0] * 3 / 2;
        value[4] = value[1];
        value[5] = value[2] / 2;
    }
    Person person;
    for (std::size_t i = 0; i < value.size(); ++i) person.phrases[i] = {.attribute = Index(i), .value = value[i]};
    for (std::size_t i = value.size() - 1; i > 0; --i) {
        std::swap(person.phrases[i], person.phrases[std::size_t(below(Index(i) + 1, bits))]);
    }
    person.risk = risk_of(value[0], value[1], value[2]);
    return person;
}

inline std::vector<Person> random_people(Index count, bool in_distribution, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    std::vector<Person> people;
    for (Index i = 0; i < count; ++i) people.push_back(random_person(in_distribution, bits));
    return people;
}

/// Those of a published file: a JSON object a line, with "input" and "target".
inline std::vector<Person> read_people(const std::filesystem::path& path) {
    std::vector<Person> people;
    std::istringstream lines(read_file(path, Index(1) << 28));
    Index number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        if (line.empty()) continue;
        const auto reject = [&](const std::string& why) {
            throw BadInput(fmt::format("\"{}\", line {}: {}", path.string(), number, why));
        };
        const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
        if (!json.is_object() || !json.contains("input") || !json["input"].is_string() || !json.contains("target") ||
            !json["target"].is_string()) {
            reject("not an object with the strings \"input\" and \"target\"");
        }
        const std::string input = json["input"];
        std::vector<std::pair<std::size_t, Phrase>> found;
        for (std::size_t a = 0; a < attributes.size(); ++a) {
            const std::string name = std::string(attributes[a]) + ": ";
            const std::size_t at = input.find(name);
            if (at == std::string::npos) reject(fmt::format("no \"{}\"", attributes[a]));
            const Index value = std::atoi(input.c_str() + at + name.size());
            if (value < 0 || value > most_value) reject(fmt::format("{}{} is beyond {}", name, value, most_value));
            found.push_back({at, {.attribute = Index(a), .value = value}});
        }
        std::ranges::sort(found, {}, [](const auto& one) { return one.first; });
        Person person;
        for (std::size_t i = 0; i < found.size(); ++i) person.phrases[i] = found[i].second;
        const auto risk = std::ranges::find(risks, json["target"].get<std::string>());
        if (risk == risks.end()) reject("an unknown \"target\"");
        person.risk = risk - risks.begin();
        people.push_back(person);
    }
    if (people.empty()) throw BadInput(fmt::format("\"{}\" has no examples", path.string()));
    return people;
}

/// How many of these people the most frequent risk of those is right for.
inline double most_frequent_right(const std::vector<Person>& trained, const std::vector<Person>& tested) {
    std::array<Index, risks.size()> counts{};
    for (const Person& person : trained) ++counts[std::size_t(person.risk)];
    const Index answer = std::ranges::max_element(counts) - counts.begin();
    const auto right = std::ranges::count_if(tested, [&](const Person& person) { return person.risk == answer; });
    return double(right) / double(tested.size());
}

}  // namespace spurious_tokens
