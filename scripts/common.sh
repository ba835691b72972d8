# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts share; to be sourced. Changes to the root of the repository.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

if command -v nproc >/dev/null; then
    jobs="$(nproc)"
else
    jobs=2
fi

# OpenMP threads that spin while they wait slow each other down where something else runs as well.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# configure <build directory> [<option for cmake>...]
configure() {
    local directory="$1"
    shift
    local generator=()
    # A build directory keeps the generator that it began with.
    if [[ ! -e "$directory/CMakeCache.txt" ]] && command -v ninja >/dev/null; then
        generator=(-G Ninja)
    fi
    cmake -S . -B "$directory" "${generator[@]}" "$@"
}

# build <build directory> [<option for cmake --build>...]
build() {
    cmake --build "$1" --parallel "$jobs" "${@:2}"
}

# run_tests <build directory> [<option for ctest>...]
run_tests() {
    (cd "$1" && ctest --output-on-failure --no-tests=error --parallel "$jobs" "${@:2}")
}

# run_python <argument>...: Debian's own, since that is what its packages are for.
run_python() {
    if [[ -x /usr/bin/python3 ]]; then
        /usr/bin/python3 "$@"
    else
        python3 "$@"
    fi
}
