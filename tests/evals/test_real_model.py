"""A user's first run on a real language model, by name, from nothing to a table; truly fetched and computed.

KVQUANT_LLAMA_BIN names the folder of a patched build; `make test` sets it.
"""

from __future__ import annotations

import json

from assets.real_files import fetched
from command_line import run_kvquant
from kvquant.assets.find import model_path, text_path
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.architectures import read_shape
from kvquant.policy import parse_policy
from llama.proof import needs_patched

pytestmark = needs_patched

N_CTX = 128


def test_policies_on_a_real_model_and_text_by_name() -> None:
    model = fetched(lambda: model_path("smollm2-135m"))
    fetched(lambda: text_path("prose"))
    argv = ["divergence", "--model", "smollm2-135m", "--text", "prose"]
    argv += ["--ctx", str(N_CTX), "--tokens", "63", "--threads", "1", "--json"]
    for policy in ("q8_0", "k8v4", "q4_0", "q4_0@no-rotation"):
        argv += ["--policy", policy]
    done = run_kvquant(*argv, timeout_seconds=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["start"]["model"]["name"] == model.name and found["n_tokens"] == 63
    # English prose, read by a model that was trained on it: far from chance, which is its 49,152 tokens.
    assert 3 < found["baseline_perplexity"] < 60
    q8_0, k8v4, q4_0, unrotated = (policy["kl_mean"] for policy in found["policies"])
    assert 0 < q8_0 < k8v4 < q4_0 < unrotated
    shape = read_shape(model)
    for policy in found["policies"]:
        resolved = parse_policy(policy["policy"]).resolve(shape)
        assert policy["kv_bytes"] == memory_of(shape, resolved, ContextOptions(N_CTX, 1)).kv_bytes
