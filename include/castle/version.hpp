// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The version of the library, by semantic versioning. CMake reads the three numbers from here, so that they
/// are written down once.
#define CASTLE_VERSION_MAJOR 0
#define CASTLE_VERSION_MINOR 1
#define CASTLE_VERSION_PATCH 0
