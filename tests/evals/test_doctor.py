"""`kvquant doctor`: what it finds in files, policies, memory and machines, and what it lets pass."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from evals.test_machine import board, write
from kvquant.cli.main import kvquant
from kvquant.cli.options import rotation_line
from kvquant.errors import CheckFailed, UsageError
from kvquant.evals.doctor import (
    Severity,
    check_key_bias,
    check_machine,
    check_policy,
    check_rkllm,
    key_bias_norms,
)
from kvquant.evals.machine import read_machine
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import LayerShape, ModelShape, RecurrentState
from kvquant.model.shape_json import shape_to_json
from kvquant.policy import parse_policy
from kvquant.units import format_n_bytes
from model.gguf_bytes import GgufFile, Tensor, llama_keys

F32, F16, Q8_0, BF16 = 0, 1, 8, 30


def model_file(path: Path, norms: Mapping[int, float], kind: int = F32) -> Path:
    """A llama of eight layers whose attn_k.bias have these norms, 32 equal values each."""
    tensors, data = [], b""
    for layer, norm in norms.items():
        values = np.full(32, norm / np.sqrt(32), dtype=np.float32)
        if kind == BF16:
            encoded = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        elif kind == Q8_0:
            encoded = struct.pack("<e", 1.0) + b"\1" * 32
        else:
            encoded = values.astype("<f4" if kind == F32 else "<f2").tobytes()
        tensors.append(Tensor(f"blk.{layer}.attn_k.bias", (32,), kind, len(data)))
        data += encoded + b"\0" * (-len(encoded) % 32)
    path.write_bytes(GgufFile(llama_keys(block_count=8), tensors, data).encoded())
    return path


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(kvquant, ["doctor", "--root", str(tmp_path / "root"), *arguments, "--json"])


def found(result: Result) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = json.loads(result.stdout)
    return findings


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return model_file(tmp_path / "good.gguf", {0: 20.0, 1: 22.0, 2: 24.0, 3: 90.0})


QWEN = {0: 605.0, 1: 20.0, 2: 21.0, 3: 921.0, 4: 22.0, 5: 22.0, 6: 22.0, 7: 23.0}


def test_nothing_to_complain_about(tmp_path: Path, good: Path) -> None:
    result = run(tmp_path, "--model", str(good))
    assert result.exit_code == 0
    assert [finding["severity"] for finding in found(result)] == ["note"]
    assert "free memory is unknown" in found(result)[0]["what"]


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (b"", "is empty", "get the file again"),
        (b"GGUF", "it ends after 4 bytes", "get the file again"),
        (b"GGML" * 9, "a text that starts with 'GGMLGGML", "get the file itself"),
        (b"GGML\0\1\2" * 9, "it starts with b'GGML'", "give the model as GGUF"),
        (b"PK\x03\x04" + b"\0" * 90, "a ZIP archive, perhaps a PyTorch checkpoint", "convert_hf_to_gguf.py"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page", "download the file itself"),
        (b"GGUF\0\0\0\3" + b"\0" * 16, "big-endian", "gguf-convert-endian"),
    ],
)
def test_gguf_files_that_are_none(tmp_path: Path, content: bytes, what: str, fix: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    result = run(tmp_path, "--model", str(path))
    assert isinstance(result.exception, CheckFailed)
    (finding,) = found(result)
    assert finding["severity"] == "must fix" and finding["subject"] == str(path)
    assert what in finding["what"] and fix in finding["fix"]


def test_a_truncated_gguf_file(tmp_path: Path, good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-40])
    (finding,) = found(run(tmp_path, "--model", str(good)))
    assert "an incomplete download?" in finding["what"]


def test_a_missing_file_and_an_unknown_architecture(tmp_path: Path) -> None:
    (finding,) = found(run(tmp_path, "--model", str(tmp_path / "no.gguf")))
    assert "No such file" in finding["what"]
    path = tmp_path / "odd.gguf"
    path.write_bytes(GgufFile(keys={"general.architecture": "no-such-arch"}).encoded())
    result = run(tmp_path, "--model", str(path))
    finding = found(result)[-1]
    # llama.cpp may run it: nothing has to be fixed but that there are no tensors.
    assert finding["severity"] == "warning" and "--shape" in finding["fix"]


@pytest.mark.parametrize("kind", [F32, F16, BF16])
def test_bias_norms_are_read(tmp_path: Path, kind: int) -> None:
    path = model_file(tmp_path / "m.gguf", QWEN, kind)
    assert key_bias_norms(open_model(path)) == pytest.approx(QWEN, rel=0.01)


def test_biases_in_other_types_are_left_out(tmp_path: Path) -> None:
    assert key_bias_norms(open_model(model_file(tmp_path / "m.gguf", QWEN, Q8_0))) == {}


def test_a_file_that_shrank_after_its_header_was_read(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", QWEN)
    model = open_model(path)
    path.write_bytes(path.read_bytes()[:-160])
    assert set(key_bias_norms(model)) == set(range(6))


@pytest.mark.parametrize(
    ("arguments", "severity"),
    [
        ([], "warning"),
        (["--default", "q4_0"], "must fix"),
        (["--layers", "3:q4_0"], "must fix"),
        (["--layers", "0:k=q8_0,3:k=q8_0", "--default", "q4_0"], "note"),
        (["--layers", "1-2:q4_0"], "note"),
        (["--default", "k=q8_0/v=q4_0"], "note"),
    ],
)
def test_large_biases_and_the_policy(tmp_path: Path, arguments: list[str], severity: str) -> None:
    path = model_file(tmp_path / "m.gguf", QWEN)
    result = run(tmp_path, "--model", str(path), *arguments)
    (finding,) = [f for f in found(result) if "K bias" in f["what"]]
    assert finding["severity"] == severity
    assert "layer 0, 3 has a norm of up to 921, the median is 22" in finding["what"]
    assert isinstance(result.exception, CheckFailed) == (severity == "must fix")
    if severity == "warning":
        assert "--policy 0:k=q8_0,3:k=q8_0" in finding["fix"]
    if severity == "must fix":
        again = run(tmp_path, "--model", str(path), "--policy", finding["fix"].split("--policy ")[1])
        assert again.exit_code == 0


def test_the_fix_of_a_bias_keeps_the_rest_of_the_policy(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", QWEN)
    policy = "0-1:k=q4_0/v=q5_1,4:q8_0"
    result = run(tmp_path, "--model", str(path), "--policy", policy, "--default", "iq4_nl")
    (finding,) = [f for f in found(result) if "K bias" in f["what"]]
    assert finding["fix"].endswith(
        "--policy 0:k=q8_0/v=q5_1,1:k=q4_0/v=q5_1,2:iq4_nl,3:k=q8_0/v=iq4_nl,4:q8_0,5-7:iq4_nl"
    )


def test_norms_that_stand_out_without_being_large_are_harmless() -> None:
    assert check_key_bias({0: 90.0, **dict.fromkeys(range(1, 9), 1.0)}, None, "m") == []
    assert check_key_bias(dict.fromkeys(range(9), 900.0), None, "m") == []
    assert len(check_key_bias({0: 230.0, **dict.fromkeys(range(1, 9), 22.0)}, None, "m")) == 1


def test_a_bias_that_is_no_number() -> None:
    (finding,) = check_key_bias({0: float("nan"), 1: 3.0}, None, "m")
    assert finding.severity is Severity.FIX and "layer 0 is not finite" in finding.what


def shape(head_dim: int) -> ModelShape:
    return ModelShape(
        name="m", arch="llama", n_ctx_train=4096, layers=(LayerShape(4, 2, head_dim, head_dim),) * 4
    )


@pytest.mark.parametrize(
    ("head_dim", "text", "severities"),
    [
        (128, "*:f16", []),
        (128, "*:q8_0", ["note"]),
        (128, "*:k=q8_0/v=f16", ["note"]),
        (128, "*:bf16", ["note"]),
        (96, "*:q8_0", ["note", "note"]),
        (96, "*:q4_0", ["note", "note", "warning"]),
        (128, "*:k=q8_0/v=q4_0", ["note"]),
        (128, "0:q5_1,1-:q8_0", ["note", "note"]),
        (96, "*:k=f16/v=q4_0", ["note", "warning"]),
        (80, "*:q4_0", ["must fix"]),
        (80, "*:f16", []),
        (128, "0-9:f16", ["warning"]),
        (128, "*:tq_mse_4b", ["must fix"]),
    ],
)
def test_policies(head_dim: int, text: str, severities: list[str]) -> None:
    the_shape = shape(head_dim)
    policy = parse_policy(text).resolve(the_shape)
    findings = check_policy(the_shape, policy, rotation_line(the_shape, policy))
    assert sorted(finding.severity for finding in findings) == sorted(severities)
    assert all(finding.fix for finding in findings if finding.severity is not Severity.NOTE)


def test_memory(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def memory(available_mib: int, *more: str) -> dict[str, Any]:
        write(root, proc__meminfo=f"MemAvailable: {available_mib * 1024} kB")
        result = run(tmp_path, "--shape", "llama-8b", "--ctx", "8192", *more)
        return next(f for f in found(result) if f["subject"] == "memory")

    # 128 KiB a token in f16.
    assert memory(1024)["severity"] == "note"
    short = memory(1023)
    assert short["severity"] == "must fix"
    assert short["fix"] == "use at most -c 7936, or smaller types"
    assert memory(1023, "--default", "q8_0")["severity"] == "note"
    assert memory(1)["fix"] == "free some memory, or take a smaller model"


HYBRID = ModelShape(
    name="h",
    arch="h",
    n_ctx_train=0,
    layers=(LayerShape(4, 0, 64, 64, keeps_cache=False, recurrent=True), LayerShape(4, 2, 64, 64)) * 2,
    state=RecurrentState(512, 4096),
)


@pytest.mark.parametrize(
    "settings", [[], ["--parallel", "2"], ["--parallel", "3", "--kv-unified"], ["-np", "1"]]
)
@pytest.mark.parametrize("name", ["gemma-3-4b", "llama-8b", "hybrid"])
def test_the_figures_are_those_of_memory(tmp_path: Path, name: str, settings: list[str]) -> None:
    """The same settings give the same bytes, states apart from K and V."""
    if name == "hybrid":
        name = str(tmp_path / "hybrid.json")
        Path(name).write_text(shape_to_json(HYBRID))
    for policy in ("f16", "q8_0"):
        given = ["--shape", name, "--ctx", "8192", "--default", policy, *settings]
        memory = next(f for f in found(run(tmp_path, *given)) if f["subject"] == "memory")["what"]
        document = json.loads(CliRunner().invoke(kvquant, ["memory", *given, "--json"]).stdout)
        total = document["total"]
        assert f" needs {format_n_bytes(total['kv_bytes'])} of KV cache" in memory
        states = total["recurrent_bytes"]
        assert (f" and {format_n_bytes(states)} of recurrent states" in memory) is bool(states)
        n_parallel = document["context"]["n_parallel"]
        assert f" for {n_parallel} sequence" in memory


@pytest.mark.parametrize(
    ("keys", "ctx", "warned"),
    [
        ({}, [], False),
        ({}, ["--ctx", "4096"], False),
        ({}, ["--ctx", "4097"], True),
        ({}, ["--ctx", "8192", "--parallel", "2"], False),
        ({}, ["--ctx", "8192", "--parallel", "2", "--kv-unified"], True),
        ({"context_length": 512}, [], False),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, ["--ctx", "16384"], False),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, ["--ctx", "16385"], True),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, ["--ctx", "16384"], True),
        ({"rope__scale_linear": 2.0}, ["--ctx", "8192"], False),
        ({"rope__scaling__factor": float("nan")}, ["--ctx", "8192"], True),
        ({"rope__scaling__factor": "x"}, ["--ctx", "8192"], True),
    ],
)
def test_a_context_beyond_training(
    tmp_path: Path, keys: dict[str, Any], ctx: list[str], warned: bool
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GgufFile(llama_keys(**keys), [Tensor("a")], bytes(128)).encoded())
    findings = [f for f in found(run(tmp_path, "--model", str(path), *ctx)) if f["subject"] == "context"]
    assert bool(findings) is warned
    for finding in findings:
        longest = finding["fix"].split("--ctx ")[1].split(",")[0]
        again = found(run(tmp_path, "--model", str(path), *ctx, "--ctx", longest))
        assert not [f for f in again if f["subject"] == "context"]


@pytest.mark.parametrize("policy", ["q4_0", "q8_0", "*:k=f16/v=q4_0", "0:q8_0,1-:f16"])
def test_heads_that_no_block_divides_are_one_line_everywhere(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "m.gguf"
    keys = llama_keys(attention__key_length=80, attention__value_length=80)
    path.write_bytes(GgufFile(keys, [Tensor("a")], bytes(128)).encoded())
    (finding,) = [f for f in found(run(tmp_path, "--model", str(path), "--policy", policy)) if f["fix"]]
    line = f"{finding['what']}; {finding['fix']}"
    assert "do not divide heads of 80, so this model's cache can only be f32, f16 or bf16" in line
    for command in (["memory", "--ctx", "256"], ["llama", "serve"]):
        arguments = [*command, "--model", str(path), "--policy", policy]
        assert str(CliRunner().invoke(kvquant, arguments).exception) == line
    assert str(CliRunner().invoke(kvquant, ["policy", policy, "--model", str(path)]).exception) == line
    assert "rotat" not in line and "pad" not in line


def test_weights_count(tmp_path: Path, good: Path) -> None:
    write(tmp_path / "root", proc__meminfo="MemAvailable: 1 kB")
    memory = next(f for f in found(run(tmp_path, "--model", str(good))) if f["subject"] == "memory")
    assert memory["severity"] == "must fix" and "of weights" in memory["what"]


def test_a_board_that_is_ready(tmp_path: Path) -> None:
    (finding,) = check_machine(read_machine(board(tmp_path)))
    assert finding.severity is Severity.NOTE
    assert "cores 4-7 are the fast ones of 8: run with taskset -c 4-7 and -t 4" in finding.what


def test_a_board_that_is_not(tmp_path: Path) -> None:
    findings = check_machine(read_machine(board(tmp_path, governor="ondemand", temperature=80000)))
    assert [finding.severity for finding in findings] == ["warning", "warning", "must fix", "note"]
    assert "cores 0-7 use the governor ondemand" in findings[0].what
    assert "/sys/class/devfreq/dmc/governor" in findings[1].fix
    assert findings[2].what == "soc-thermal is at 80 °C, clocks go down from 75 °C"


def test_cores_that_differ_by_little_are_alike(tmp_path: Path) -> None:
    for core, khz in enumerate((2400000, 2352000)):
        write(tmp_path, **{f"sys__devices__system__cpu__cpu{core}__cpufreq__cpuinfo_max_freq": str(khz)})
    assert check_machine(read_machine(tmp_path)) == []


def rkllm(path: Path, n_bytes: int = 2**21, head: bytes = b"\1\2\3") -> Path:
    path.write_bytes(head + b"\0" * (n_bytes - len(head)))
    return path


@pytest.mark.parametrize(
    ("name", "soc", "severity", "what"),
    [
        ("Qwen-w8a8-RK3588.rkllm", "rk3588", None, ""),
        ("Qwen-w8a8-rk3588.rkllm", "rk3588s", None, ""),
        ("Qwen-w8a8-rk3576.rkllm", "rk3588", Severity.FIX, "is for rk3576, this machine is rk3588"),
        ("Qwen-w8a8-rk3588.rkllm", None, Severity.NOTE, "not a Rockchip board"),
        ("Qwen-w8a8-rk3588.rkllm", "bcm2712", Severity.NOTE, "not a Rockchip board"),
        ("Qwen.rkllm", "rk3588", Severity.WARNING, "does not say in its name"),
    ],
)
def test_rkllm_platforms(
    tmp_path: Path, name: str, soc: str | None, severity: Severity | None, what: str
) -> None:
    *about_chip, last = check_rkllm(rkllm(tmp_path / name), soc)
    assert "policies do not apply" in last.what
    assert [finding.severity for finding in about_chip] == ([severity] if severity else [])
    assert all(what in finding.what for finding in about_chip)


@pytest.mark.parametrize(
    ("n_bytes", "head", "what"),
    [
        (0, b"", "is empty"),
        (2**21, b"", "nothing but zeros"),
        (2**20 - 1, b"\1", "has only 1024.00 KiB"),
        (2**21, b"GGUF", "is a GGUF file"),
        (300, b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (300, b"<html>", "web page"),
    ],
)
def test_rkllm_files_that_are_none(tmp_path: Path, n_bytes: int, head: bytes, what: str) -> None:
    path = rkllm(tmp_path / "x-rk3588.rkllm", n_bytes, head)
    path.write_bytes(path.read_bytes()[:n_bytes])
    result = run(tmp_path, "--model", str(path))
    assert isinstance(result.exception, CheckFailed)
    (finding,) = found(result)
    assert finding["severity"] == "must fix" and what in finding["what"]


def test_usage(tmp_path: Path) -> None:
    path = rkllm(tmp_path / "x-rk3588.rkllm")
    for arguments in (["--model", str(path), "--layers", "*:q8_0"], ["--layers", "*:q8_0"]):
        assert isinstance(run(tmp_path, *arguments).exception, UsageError)


def test_text(tmp_path: Path) -> None:
    command = ["doctor", "--root", str(tmp_path)]
    assert CliRunner().invoke(kvquant, command).stdout == "nothing found\n"
    board(tmp_path, governor="powersave")
    text = CliRunner().invoke(kvquant, command).stdout
    assert text.startswith("warning   cores: cores 0-7 use the governor powersave")
    assert "\n          fix: echo performance | sudo tee" in text
