"""The sanitizers' reports: equal findings are one, each with its place in llama.cpp."""

from __future__ import annotations

from sanitizer_report import findings, outcome

UNDEFINED = """
/home/u/.cache/x/tree/src/a.cpp:10:5: runtime error: load of value 190, not valid for type 'bool'
    #0 0x55 in f(int) /home/u/.cache/x/tree/src/a.cpp:10
/home/u/.cache/x/tree/src/a.cpp:10:5: runtime error: load of value 7, not valid for type 'bool'
"""

ADDRESS = """
==12==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602 at pc 0x55 bp 0x7f sp 0x7f
READ of size 4 at 0x602 thread T0
    #0 0x7f in memcpy ../sanitizer_common_interceptors.inc:899
    #1 0x55 in llama_kv_cache::state_read(int) /home/u/.cache/x/tree/src/llama-kv-cache.cpp:2700
"""


def test_findings_have_a_place_and_a_kind() -> None:
    first, second = findings(UNDEFINED)
    assert first == second == ("src/a.cpp:10", "load of value N, not valid for type 'bool'")
    assert findings(ADDRESS) == [
        (
            "src/llama-kv-cache.cpp:2700 in llama_kv_cache::state_read(int)",
            "AddressSanitizer: heap-buffer-overflow",
        )
    ]
    assert findings("ERROR: LeakSanitizer: detected memory leaks\n    #0 0x7f in malloc ???\n") == [
        ("no frame of llama.cpp", "LeakSanitizer: detected")
    ]
    assert findings("all is well\n") == []


def test_a_run_that_repeats_what_did_not_pass_is_counted_once() -> None:
    first = "...F\n= 3 failed, 5 passed, 2 skipped, 1 error in 61.50s (0:01:01) =\n"
    assert outcome([first]) == "4 failed, 5 passed, 2 skipped in 0:01:02"
    # One that was skipped is run as well, and one fails again.
    assert outcome([first, "= 1 failed, 4 passed in 8.6s ="]) == "1 failed, 9 passed, 1 skipped in 0:01:10"
    assert outcome(["= 7 passed in 1.00s ="]) == "7 passed in 0:00:01"
