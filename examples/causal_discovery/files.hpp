// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "../support/bad_input.hpp"
#include "../support/csv.hpp"
#include "../support/read_file.hpp"
#include "discover.hpp"

namespace causal_discovery {

using Names = std::vector<std::string>;

/// The variable of that name. Throws BadInput, which begins with `where`, if there is none.
inline Index variable_of(const Names& names, const std::string& name, const std::string& where) {
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) throw BadInput(fmt::format("{}: there is no variable \"{}\"", where, name));
    return found - names.begin();
}

/// "A->B", of --exclude. Blanks around the names do not count.
inline Pair pair_of(const Names& names, const std::string& text) {
    const std::string where = fmt::format("--exclude \"{}\"", text);
    const std::size_t arrow = text.find("->");
    if (arrow == std::string::npos) throw BadInput(where + " must be two variables with -> between them");
    const auto name = [](const std::string& part) {
        const std::size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
        return first == std::string::npos ? std::string() : part.substr(first, last - first + 1);
    };
    return {variable_of(names, name(text.substr(0, arrow)), where),
            variable_of(names, name(text.substr(arrow + 2)), where)};
}

/// A graph as a CSV: `cause, effect[, lag]` a line, variables by name or by number from 0; a lag is 1 unless it is
/// there.
inline std::vector<CausalLink> read_truth(const std::string& path, const Names& names) {
    const CsvFile file(path);
    std::vector<CausalLink> links;
    std::set<Pair> different;
    for (const CsvFile::Line& line : file.lines) {
        if (line.fields.size() != 2 && line.fields.size() != 3) {
            file.reject(line.number, fmt::format("has {} fields but must have a cause, an effect and perhaps a lag",
                                                 line.fields.size()));
        }
        const auto variable = [&](std::size_t field, const std::string& what) {
            const auto named = std::ranges::find(names, line.fields[field]);
            return named != names.end() ? named - names.begin() : file.index(line, field, what, Index(names.size()));
        };
        CausalLink link{.cause = variable(0, "the cause"), .effect = variable(1, "the effect")};
        if (line.fields.size() == 3) link.lag = file.index(line, 2, "the lag", 1000000);
        if (!different.insert({link.cause, link.effect}).second) file.reject(line.number, "the link is there already");
        links.push_back(link);
    }
    return links;
}

/// The links and what was excluded. A person may look at it, move links to those excluded, and give it back.
inline void write_graph(const std::string& path, const Names& names, const std::vector<CausalLink>& links,
                        const Excluded& excluded) {
    nlohmann::ordered_json graph;
    graph["variables"] = names;
    graph["links"] = nlohmann::ordered_json::array();
    for (const CausalLink& link : links) {
        graph["links"].push_back({{"cause", names[std::size_t(link.cause)]},
                                  {"effect", names[std::size_t(link.effect)]},
                                  {"lag", link.lag},
                                  {"strength", link.strength}});
    }
    graph["excluded"] = nlohmann::ordered_json::array();
    for (const auto& [cause, effect] : excluded) {
        graph["excluded"].push_back({{"cause", names[std::size_t(cause)]}, {"effect", names[std::size_t(effect)]}});
    }
    std::ofstream file(path);
    file << graph.dump(2) << '\n';
    file.flush();
    if (!file) throw BadInput(fmt::format("--json {} could not be written", path));
}

/// What a graph excludes that was written so.
inline Excluded read_excluded(const std::string& path, const Names& names) {
    const auto reject = [&](const std::string& why) { throw BadInput(fmt::format("\"{}\" {}", path, why)); };
    const nlohmann::json graph = nlohmann::json::parse(read_file(path, std::numeric_limits<Index>::max()), nullptr,
                                                       /*allow_exceptions=*/false);
    if (!graph.is_object() || !graph.contains("excluded") || !graph["excluded"].is_array()) {
        reject("is no graph in JSON with a list \"excluded\"");
    }
    Excluded excluded;
    for (const nlohmann::json& link : graph["excluded"]) {
        const auto variable = [&](const char* key) {
            if (!link.is_object() || !link.contains(key) || !link[key].is_string()) {
                reject(fmt::format("has an excluded link without a \"{}\"", key));
            }
            return variable_of(names, link[key], fmt::format("\"{}\"", path));
        };
        excluded.insert({variable("cause"), variable("effect")});
    }
    return excluded;
}

}  // namespace causal_discovery
