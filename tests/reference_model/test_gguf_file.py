"""The exported file: what is in it, and that it comes back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from gguf import GGUFReader  # noqa: E402

from kvquant.errors import ModelFileError  # noqa: E402
from kvquant.reference.tokenizer import CHAT_TEMPLATE  # noqa: E402
from kvquant.reference.vocabulary import TOKENS  # noqa: E402
from reference_model.gguf_file import export_gguf, load_gguf  # noqa: E402


@pytest.fixture
def exported(tiny_model, tmp_path):
    path = tmp_path / "m.gguf"
    export_gguf(tiny_model, path, name="tiny", description="untrained")
    return path


def test_weights_come_back_rounded_to_float16(tiny_model, exported):
    loaded = load_gguf(exported)
    assert loaded.config.n_layer == tiny_model.config.n_layer
    assert loaded.config.norm_eps == pytest.approx(tiny_model.config.norm_eps)
    for name, values in tiny_model.state_dict().items():
        is_norm = name.endswith("norm")
        expected = values if is_norm else values.half().float()
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=0, atol=0)


def test_a_second_export_is_the_same_file(exported, tmp_path):
    again = tmp_path / "again.gguf"
    export_gguf(load_gguf(exported), again, name="tiny", description="untrained")
    assert again.read_bytes() == exported.read_bytes()


def test_tokenizer_and_template_are_in_the_file(exported):
    fields = GGUFReader(exported).fields
    assert fields["tokenizer.ggml.model"].contents() == "rwkv"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == len(TOKENS)
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE
    assert fields["general.architecture"].contents() == "qwen3"


def test_nothing_unfinished_is_left(exported):
    assert [path.name for path in exported.parent.iterdir()] == ["m.gguf"]


def test_other_files_are_refused(tmp_path, exported):
    for content in (b"", b"GGUF", exported.read_bytes()[:5000]):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"is not a reference model"):
            load_gguf(path)
    with pytest.raises(ModelFileError):
        load_gguf(tmp_path / "missing.gguf")
