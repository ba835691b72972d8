// SPDX-License-Identifier: Apache-2.0
#pragma once

/// CASTLE, causal attention with lookahead keys (arXiv:2509.07301): everything the library offers. Each header may also
/// be included alone.

#include <castle/detail/base/requirements.hpp>

#include <castle/attention.hpp>
#include <castle/backward.hpp>
#include <castle/cache.hpp>
#include <castle/executor.hpp>
#include <castle/extend.hpp>
#include <castle/input.hpp>
#include <castle/layer.hpp>
#include <castle/layer_cache.hpp>
#include <castle/layer_weights.hpp>
#include <castle/layer_workspace.hpp>
#include <castle/mask.hpp>
#include <castle/methods/causal_graph.hpp>
#include <castle/methods/confounders.hpp>
#include <castle/methods/future_aware.hpp>
#include <castle/methods/reattention.hpp>
#include <castle/methods/temporal.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/reference/dense.hpp>
#include <castle/reference/recurrent.hpp>
#include <castle/rotary.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>
#include <castle/version.hpp>
#include <castle/wide_input.hpp>
#include <castle/workspace.hpp>
