#!/usr/bin/env bash
# Build the patched llama.cpp programs for boards with an RK3588, and lay them out as one folder to copy there.
# What to build, with which flags, and how the result is checked is in `kvquant llama build --target rk3588`; this
# script adds the Debian packages and the install tree.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=(llama-server llama-cli llama-bench llama-perplexity)

usage() {
    cat <<'USAGE'
Usage: tools/build_rk.sh [OPTION]...

Build the patched llama-server, llama-cli, llama-bench and llama-perplexity for the RK3588: natively on an ARM board,
with a cross compiler on x86. The result is checked for dot-product and 16-bit float instructions.

  --source DIR      llama.cpp tree; it stays as it is  [default: the pinned tree, fetched]
  --jobs N          compilers at a time  [default: the number of CPUs]
  --prefix DIR      where the stripped programs go  [default: build/rk3588]
  --cmake-arg ARG   one more cmake argument; may be repeated
  --install-deps    install missing Debian packages first (apt-get, through sudo unless root)
  --dry-run         print the commands, run none
  --help            this text

Example:
  tools/build_rk.sh --prefix /tmp/rk3588 && scp -r /tmp/rk3588 board:
USAGE
}

fail() {
    echo "build_rk.sh: error: $*" >&2
    exit 1
}

bad_usage() {
    echo "build_rk.sh: error: $*; see tools/build_rk.sh --help" >&2
    exit 2
}

# Run a command, or print it as the shell would take it.
run() {
    if [[ $dry_run ]]; then
        printf '+'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Names of the Debian packages without which nothing can be built here, one a line.
missing_packages() {
    local python=python3
    [[ -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python
    command -v "$python" >/dev/null || echo python3
    "$python" -c 'import click' 2>/dev/null || echo python3-click
    command -v cmake >/dev/null || [[ -x $root/.venv/bin/cmake ]] || echo cmake
    command -v ninja >/dev/null || [[ -x $root/.venv/bin/ninja ]] || echo ninja-build
    if [[ $cross ]]; then
        command -v aarch64-linux-gnu-g++ >/dev/null || echo g++-aarch64-linux-gnu
        command -v qemu-aarch64-static >/dev/null || echo qemu-user-static
    else
        command -v g++ >/dev/null || echo g++
    fi
}

need_packages() {
    local packages install
    mapfile -t packages < <(missing_packages)
    [[ ${#packages[@]} -gt 0 ]] || return 0
    install=(apt-get install --yes --no-install-recommends "${packages[@]}")
    [[ $(id -u) -eq 0 ]] || install=(sudo "${install[@]}")
    if [[ $install_deps ]]; then
        run "${install[@]}"
    elif [[ $dry_run ]]; then
        echo "build_rk.sh: missing Debian packages: ${packages[*]}" >&2
    else
        fail "missing Debian packages: ${packages[*]}; run: ${install[*]}, or pass --install-deps"
    fi
}

# The kvquant command of this clone: its virtual environment's, else run from the sources (needs click only).
kvquant() {
    if [[ -x $root/.venv/bin/kvquant ]]; then
        run "$root/.venv/bin/kvquant" "$@"
    else
        run env "PYTHONPATH=$root/src" python3 -c 'from kvquant.cli.main import main; main()' "$@"
    fi
}

install_tree() {
    local bin=$1 source
    run mkdir -p "$prefix/bin"
    for program in "${programs[@]}"; do
        run "${tool_prefix}strip" -o "$prefix/bin/$program" "$bin/$program"
    done
    run install -m 755 "$root/tools/serve_rk.sh" "$prefix/bin/kv-serve"
    run install -m 644 "$bin/../build-info.json" "$prefix/build-info.json"
    if [[ ! $dry_run ]]; then
        # llama.cpp's license goes with its programs.
        source=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$bin/../CMakeCache.txt")
        install -m 644 "$source/LICENSE" "$prefix/LICENSE.llama.cpp"
        (cd "$prefix" && sha256sum bin/* >SHA256SUMS)
        echo "$prefix"
    fi
}

prefix=$root/build/rk3588
build_args=()
dry_run='' install_deps=''
while [[ $# -gt 0 ]]; do
    case $1 in
        --source | --jobs | --prefix | --cmake-arg)
            [[ $# -ge 2 ]] || bad_usage "$1 needs a value"
            if [[ $1 == --prefix ]]; then prefix=$2; else build_args+=("$1" "$2"); fi
            shift 2
            ;;
        --install-deps) install_deps=1; shift ;;
        --dry-run) dry_run=1; shift ;;
        --help | -h) usage; exit 0 ;;
        *) bad_usage "unknown argument '$1'" ;;
    esac
done
[[ -n $prefix ]] || bad_usage "--prefix needs a folder"

case $(uname -m) in
    aarch64) cross='' tool_prefix='' ;;
    x86_64) cross=1 tool_prefix=aarch64-linux-gnu- ;;
    *) fail "cannot build for the RK3588 on $(uname -m); use an ARM board or an x86 machine" ;;
esac

need_packages
for program in "${programs[@]}"; do
    build_args+=(--program "$program")
done
if [[ $dry_run ]]; then
    kvquant llama build --target rk3588 "${build_args[@]}"
    install_tree BIN
else
    bin=$(kvquant llama build --target rk3588 "${build_args[@]}")
    install_tree "$bin"
fi
