"""What is read from a llama.cpp log, on lines as the stock and the patched server print them."""

# ruff: noqa: E501

from __future__ import annotations

import pytest

from kvquant.llama.logs import KVLog, LoggedCache, LoggedLayer, LoggedTensor, failure_line, parse_kv_log

STOCK = """\
0.00.061.459 I llama_kv_cache_iswa: creating non-SWA KV cache, size = 2048 cells
0.00.061.522 I llama_kv_cache:        CPU KV buffer size =     2.00 MiB
0.00.062.626 I llama_kv_cache: size =    2.00 MiB (  2048 cells,   1 layers,  1/1 seqs), K (f32):    1.00 MiB, V (f32):    1.00 MiB
0.00.068.328 I llama_kv_cache: attn_rot_k = 0, n_embd_head_k_all = 64
0.00.068.368 I llama_kv_cache_iswa: creating     SWA KV cache, size = 768 cells
0.00.068.445 I llama_kv_cache:        CPU KV buffer size =     3.75 MiB
0.00.070.539 I llama_kv_cache: size =    3.75 MiB (   768 cells,   5 layers,  1/1 seqs), K (f32):    1.88 MiB, V (f32):    1.88 MiB
"""

PATCHED = """\
0.00.068.333 I llama_kv_cache: layer   7: K q8_0   (    1.06 MiB,    1114112 B) rotated, V q4_0   (    0.56 MiB,     589824 B)
0.00.068.330 I llama_kv_cache: layer   3: K f16    (   12.00 MiB,   12582912 B), V none
"""


def test_stock_lines() -> None:
    log = parse_kv_log(STOCK)
    assert log.caches == (
        LoggedCache(2048, 1, 1, 1, "f32", "f32", 1.0, 1.0),
        LoggedCache(768, 5, 1, 1, "f32", "f32", 1.88, 1.88),
    )
    assert log.buffers_mib == (2.0, 3.75)
    assert log.layers == () and log.n_bytes == 0
    assert not log.rotated
    assert parse_kv_log(STOCK.replace("attn_rot_k = 0", "attn_rot_k = 1")).rotated


def test_patched_lines() -> None:
    log = parse_kv_log(PATCHED)
    assert log.layers == (
        LoggedLayer(3, LoggedTensor("f16", 12582912, False), None),
        LoggedLayer(7, LoggedTensor("q8_0", 1114112, True), LoggedTensor("q4_0", 589824, False)),
    )
    assert log.n_bytes == 12582912 + 1114112 + 589824


@pytest.mark.parametrize(
    "text", ["", "layer 3: K", "size = 3.00 MiB (x cells)", "llama_kv_cache: layer 0: filtered"]
)
def test_other_lines_say_nothing(text: str) -> None:
    assert parse_kv_log(text) == KVLog((), (), (), False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "0.00.1 I loading\n0.00.044.002 E gguf_init: invalid magic\n0.00.044.102 E common_init: failed to load\n",
            "gguf_init: invalid magic",
        ),
        ("0.00.1 I x\nerror: invalid argument: --kv-layers\n", "error: invalid argument: --kv-layers"),
        ("/a/b.cpp:5: GGML_ASSERT(x == 1) failed\n0.1 E after\n", "GGML_ASSERT(x == 1) failed"),
        (
            "cannot start /x/llama-server: Permission denied\n",
            "cannot start /x/llama-server: Permission denied",
        ),
        ("one\n\ntwo\n\n", "two"),
        ("", "it printed nothing"),
    ],
)
def test_the_line_that_explains_a_failure(text: str, expected: str) -> None:
    assert failure_line(text) == expected
