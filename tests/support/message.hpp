// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace support {

// What `call` says when it throws an Exception; others pass through.
template <class Exception, class Call>
std::string message(const Call& call) {
    try {
        call();
    } catch (const Exception& e) {
        return e.what();
    }
    return "did not throw";
}

}  // namespace support
