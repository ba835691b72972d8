// SPDX-License-Identifier: Apache-2.0
// Nothing: support/kernels.hpp is precompiled for a target, and a target has a source.
