#!/usr/bin/env bash
# kv-serve: run llama-server on the fast cores of an RK3588, on this machine's own address unless told otherwise.
#
#   kv-serve --model model.gguf --kv-layers 0-10:q8_0,11-:q4_0 --ctx-size 16384
#
# All arguments go to llama-server; the last of two that contradict each other wins.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Numbers of the CPUs that are Cortex-A76 (part 0xd0b), one a line; where the kernel does not say, the CPUs of the
# highest capacity. KV_SERVE_ROOT stands before /proc and /sys in tests.
fast_cores() {
    local cpus
    cpus=$(awk -F ': *' '/^processor/ {cpu = $2} /^CPU part/ && $2 == "0xd0b" {print cpu}' \
        "${KV_SERVE_ROOT-}/proc/cpuinfo")
    if [[ -z $cpus ]]; then
        cpus=$(
            shopt -s nullglob
            for file in "${KV_SERVE_ROOT-}"/sys/devices/system/cpu/cpu[0-9]*/cpu_capacity; do
                cpu=${file%/cpu_capacity}
                echo "$(<"$file") ${cpu##*/cpu}"
            done | sort -k1,1nr -k2,2n | awk 'NR == 1 {best = $1} $1 == best {print $2}'
        )
    fi
    echo "$cpus"
}

cores=$(fast_cores)
if [[ -z $cores ]]; then
    echo "kv-serve: warning: cannot tell fast cores from slow ones here; running on all" >&2
    exec "$here/llama-server" --host 127.0.0.1 "$@"
fi
exec taskset -c "$(paste -sd , <<<"$cores")" \
    "$here/llama-server" --host 127.0.0.1 --threads "$(wc -l <<<"$cores")" "$@"
