"""Other programs' notations, with what their public pages and repositories show, read and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kvquant.cli.main import kvquant
from kvquant.errors import PolicyError, UsageError
from kvquant.model.presets import load_shape
from kvquant.policy import parse_policy, policy_from_layers
from kvquant.policy.exchange import NOTATIONS, export_policy, import_policy

SHAPE = load_shape("qwen2.5-0.5b")

# calibration_presets/Qwen2.5-7B-Instruct_pertoken_KVTuner4_0.yaml of KVTuner's repository: its first layers'
# numbers of bits, and with 2 bits for V, which llama.cpp has no type for.
KVTUNER_WITH_2_BITS = "0:\n  nbits_key: 8\n  nbits_value: 8\n1:\n  nbits_key: 4\n  nbits_value: 2\n"
KVTUNER_K8V4 = "".join(f"{layer}:\n  nbits_key: 8\n  nbits_value: 4\n" for layer in range(32))


def export(text: str, notation: str) -> str:
    policy = parse_policy(text)
    return export_policy(policy.resolve(SHAPE), policy, notation)


@pytest.mark.parametrize(
    ("text", "notation", "policy"),
    [
        ("-ctk q8_0 -ctv q4_0", "llama.cpp", "0-:k=q8_0/v=q4_0"),
        ("llama-server -m m.gguf --cache-type-k q8_0 -fa on -c 32768", "llama.cpp", "0-:k=q8_0/v=f16"),
        ("--cache-type-v=q5_1", "llama.cpp", "0-:k=f16/v=q5_1"),
        ("--kv-layers '0-10:q8_0,11-31:q4_0'", "llama.cpp", "0-10:q8_0,11-31:q4_0"),
        ("--kv-layers 0-10:q8_0 -ctk q4_0 -ctv q4_0", "llama.cpp", "0-10:q8_0,rest:q4_0"),
        # ik_llama.cpp, docs/parameters.md: TYPE,N for the first or last N layers of one side.
        (
            "-ctk q4_0 -ctv q4_0 -ctk-first q8_0,8",
            "ik_llama.cpp",
            "0-7:k=q8_0/v=q4_0,rest:q4_0",
        ),
        (
            "-ctk q8_0 -ctk-first f16,2 -ctv-first q8_0,4 -ctk-last f16,1",
            "ik_llama.cpp",
            "0-1:k=f16/v=q8_0,2-3:q8_0,last1:f16,rest:k=q8_0/v=f16",
        ),
        ("-ctk q8_0 -ctk-first f16,0", "ik_llama.cpp", "0-:k=q8_0/v=f16"),
        (KVTUNER_K8V4, "kvtuner", "0-31:k=q8_0/v=q4_0"),
        # transformers, KV cache strategies: what generate() is given.
        (
            '{"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}',
            "transformers",
            "0-:q4_0",
        ),
        ('{"backend": "hqq", "nbits": 8, "axis_key": 1, "q_group_size": 64}', "transformers", "0-:q8_0"),
        # hf_quant_config.json of a checkpoint whose cache is left alone.
        (
            '{"producer": {"name": "modelopt"}, '
            '"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": null}}',
            "modelopt",
            "0-:f16",
        ),
        ('{"quant_cfg": {"*[kv]_bmm_quantizer": {"enable": false}}}', "modelopt", "0-:f16"),
    ],
)
def test_what_is_read(text: str, notation: str, policy: str) -> None:
    found = import_policy(text)
    assert (found.notation, found.policy) == (notation, parse_policy(policy)), str(found.policy)
    assert import_policy(text, notation) == found


@pytest.mark.parametrize(
    ("text", "notation", "policy"),
    [
        ("vllm serve M --kv-cache-dtype auto", "vllm", "*:f16"),
        ("--kv-cache-dtype bfloat16 --kv-cache-dtype-skip-layers 0 1", "vllm", "*:bf16"),
        ('{"kv_cache_dtype": "auto"}', "vllm", "*:f16"),
        ("python -m sglang.launch_server --kv-cache-dtype bf16", "sglang", "*:bf16"),
    ],
)
def test_options_that_two_servers_share_are_read_by_name(text: str, notation: str, policy: str) -> None:
    assert import_policy(text, notation).policy == parse_policy(policy)
    with pytest.raises(PolicyError, match="say --from vllm or --from sglang"):
        import_policy(text)


@pytest.mark.parametrize(
    ("text", "notation", "message"),
    [
        (KVTUNER_WITH_2_BITS, None, "layer 1, value: 2 bits; llama.cpp has a cache type for 4, 8, 16 bits"),
        ("0:\n  nbits_key: 8\n", None, "layer 0 has no nbits_value"),
        ("0:\n  0: {nbits_key: 8, nbits_value: 4}\n", None, "layer 0 is split by head"),
        ("nbits_key: [", None, "no YAML"),
        ("- nbits_key", None, "is a mapping of layer numbers"),
        ("-ctk q8_KV -ctv q6_0", "ik_llama.cpp", "-ctk: q8_KV is not a cache type of llama.cpp"),
        ("-ctk-first q8_0", None, "-ctk-first q8_0: not TYPE,N"),
        ("-ctk q8_0 -ctk-first q8_0,2", "llama.cpp", "-ctk-first is ik_llama.cpp's"),
        ("-ctk q9", None, "-ctk: q9 is not a cache type of llama.cpp"),
        ("-ctk", None, "-ctk: nothing is not a cache type"),
        ("-ctk 'q8_0", None, "the command line does not end"),
        (
            "--kv-cache-dtype fp8_e4m3",
            "vllm",
            "--kv-cache-dtype fp8_e4m3: llama.cpp has no cache of that type",
        ),
        (
            "--kv-cache-dtype fp4_e2m1",
            "sglang",
            "--kv-cache-dtype fp4_e2m1: llama.cpp has no cache of that type",
        ),
        ("--port 30000", "sglang", "no --kv-cache-dtype"),
        (
            '{"quantization": {"kv_cache_quant_algo": "FP8"}}',
            None,
            "kv_cache_quant_algo FP8: llama.cpp has no",
        ),
        (
            '{"quant_cfg": {"*[kv]_bmm_quantizer": {"num_bits": [4, 3]}}}',
            None,
            r"*[kv]_bmm_quantizer with num_bits [4, 3]: llama.cpp has no cache",
        ),
        (
            '{"quant_cfg": [{"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": 8}}]}',
            None,
            "with num_bits 8: llama.cpp has no cache",
        ),
        ('{"nbits": 2}', None, "nbits: 2 bits; llama.cpp has a cache type for 4, 8, 16 bits"),
        ('{"nbits": true}', None, "nbits: True bits"),
        ("[1", "transformers", "no JSON"),
        ("[1]", "transformers", "is an object, not list"),
        ("0-10:q8_0", None, "the text is in none of the known notations"),
        ("", None, "the text is in none of the known notations"),
    ],
)
def test_what_no_policy_says_is_refused_by_name(text: str, notation: str | None, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        import_policy(text, notation)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "notation", "message"),
    [
        ("0-3:q5_0,rest:q4_0", "kvtuner", "layer 0, K: KVTuner has no word for q5_0"),
        ("0-3:q8_0,rest:q4_0", "transformers", "one number of bits for all layers"),
        ("q5_0", "transformers", "has no word for q5_0"),
        ("k8v4", "vllm", "layer 0, K: vLLM has no cache of type q8_0"),
        ("f16", "sglang", "layer 0, K: SGLang has no cache of type f16"),
        ("q8_0", "modelopt", "layer 0: ModelOpt has no word for K in q8_0 and V in q8_0"),
        ("0:q8_0,2:q8_0,rest:q4_0", "ik_llama.cpp", "K changes its type 3 times along the layers"),
        ("0:f16,rest:bf16", "vllm", "one type for the whole cache, not bf16 and f16"),
    ],
)
def test_what_a_notation_cannot_say_is_refused_by_name(policy: str, notation: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        export(policy, notation)
    assert message in str(caught.value)


N_LAYER = SHAPE.n_layer
anything = st.lists(
    st.tuples(st.sampled_from(("f16", "q8_0", "q5_1", "q4_0")), st.sampled_from(("f16", "q8_0", "q4_0"))),
    min_size=N_LAYER,
    max_size=N_LAYER,
)
few_runs = st.tuples(st.integers(0, 6), st.integers(0, 6), anything).map(
    lambda drawn: (
        [drawn[2][0]] * drawn[0] + [drawn[2][1]] * (N_LAYER - drawn[0] - drawn[1]) + [drawn[2][2]] * drawn[1]
    )
)


@given(st.one_of(anything, few_runs), st.sampled_from(NOTATIONS))
def test_what_is_written_is_read_back_the_same(types: list[tuple[str, str]], notation: str) -> None:
    policy = policy_from_layers((layer, k, v) for layer, (k, v) in enumerate(types))
    check_round_trip(policy, notation)


def check_round_trip(policy: object, notation: str) -> None:
    """A notation either says a policy without loss or refuses it."""
    resolved = policy.resolve(SHAPE)  # type: ignore[attr-defined]
    try:
        text = export_policy(resolved, policy, notation)  # type: ignore[arg-type]
    except PolicyError:
        return
    assert import_policy(text, notation).policy.resolve(SHAPE).layers == resolved.layers


def test_the_check_notices_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvquant.policy import exchange

    monkeypatch.setitem(exchange._WRITERS, "llama.cpp", lambda *_: "-ctk q8_0 -ctv q8_0")
    with pytest.raises(AssertionError):
        check_round_trip(parse_policy("*:q4_0"), "llama.cpp")


@pytest.mark.parametrize("notation", NOTATIONS)
def test_every_notation_can_say_something(notation: str) -> None:
    plain = {"sglang": "bf16", "kvtuner": "k8v4", "transformers": "q4_0"}.get(notation, "f16")
    assert import_policy(export(plain, notation), notation).policy.resolve(SHAPE).layers


def test_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "kvtuner.yaml"
    file.write_text(KVTUNER_K8V4)
    done = CliRunner().invoke(kvquant, ["policy", "import", str(file)])
    assert done.exit_code == 0 and done.stdout == "0-31:k=q8_0/v=q4_0\n"
    assert "bits are read as q8_0 and q4_0" in done.stderr
    done = CliRunner().invoke(kvquant, ["policy", "import", "-", "--json"], input="-ctk q8_0 -fa on")
    assert json.loads(done.stdout)["notation"] == "llama.cpp" and "-fa" in done.stderr
    done = CliRunner().invoke(
        kvquant,
        ["policy", "export", "first2:q8_0,rest:q4_0", "--to", "ik_llama.cpp", "--shape", "qwen2.5-0.5b"],
    )
    assert done.stdout == "-ctk q4_0 -ctk-first q8_0,2 -ctv q4_0 -ctv-first q8_0,2\n", done.output
    error = CliRunner().invoke(kvquant, ["policy", "import", "-"], input="--kv-layers 0:q9_0").exception
    assert isinstance(error, PolicyError) and str(error).startswith("-: ")
    for name, data, what in (("absent", None, "cannot be read"), ("binary", b"\xff\xfe", "is not UTF-8")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        error = CliRunner().invoke(kvquant, ["policy", "import", str(tmp_path / name)]).exception
        assert isinstance(error, UsageError) and what in str(error)


def test_a_policy_needs_no_command_before_it() -> None:
    bare = CliRunner().invoke(kvquant, ["policy", "11-31:q4_0,0-10:q8_0"])
    shown = CliRunner().invoke(kvquant, ["policy", "show", "11-31:q4_0,0-10:q8_0"])
    assert bare.stdout == shown.stdout == "0-10:q8_0,11-31:q4_0\n"
    first = CliRunner().invoke(kvquant, ["policy", "--shape", "qwen3.5-2b", "q8_0"])
    assert first.exit_code == 0 and first.stdout.startswith("*:q8_0\n")
    error = CliRunner().invoke(kvquant, ["policy"]).exception
    assert isinstance(error, UsageError) and "no POLICY; give one such as k8v4, or --list" in str(error)
