// SPDX-License-Identifier: Apache-2.0
#pragma once

/// CASTLE, causal attention with lookahead keys (arXiv:2509.07301): everything the library offers. Each header may also
/// be included alone.

#include <castle/detail/base/requirements.hpp>

#include <castle/backward.hpp>
#include <castle/batch.hpp>
#include <castle/cache.hpp>
#include <castle/causal.hpp>
#include <castle/executor.hpp>
#include <castle/extend.hpp>
#include <castle/gradient.hpp>
#include <castle/head_cache.hpp>
#include <castle/input.hpp>
#include <castle/multi_head.hpp>
#include <castle/multi_head_cache.hpp>
#include <castle/multi_head_config.hpp>
#include <castle/multi_head_layer.hpp>
#include <castle/multi_head_weights.hpp>
#include <castle/multi_head_workspace.hpp>
#include <castle/options.hpp>
#include <castle/parallel.hpp>
#include <castle/reference/dense.hpp>
#include <castle/reference/recurrent.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>
#include <castle/version.hpp>
#include <castle/workspace.hpp>
