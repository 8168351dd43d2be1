"""Weights that timm would download, where there is no network: one sentence, at once, and nothing
of the process is left changed.
"""

import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from huggingface_hub import constants

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.models import download


@pytest.mark.bar("C9", "weights to download without a network: one sentence")
def test_swap_of_weights_that_cannot_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swap", "vit_tiny_patch16_224", "--pretrained"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "softless: the weights of 'vit_tiny_patch16_224' are not on this machine and cannot be "
        "downloaded (HF_HUB_OFFLINE"
    )
    assert len(said.splitlines()) == 1


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def silent(*_: Any, timeout: float) -> None:
        asked.append(timeout)
        raise urllib.error.URLError("timed out")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", silent)
    with pytest.raises(DataError, match="does not answer: timed out"):
        softless.create_model("deit_tiny_patch16_224", op="sima", pretrained=True)
    assert asked == [download.PATIENCE]
    assert constants.HF_HUB_OFFLINE is False
    assert socket.getdefaulttimeout() is None


def test_names_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no released weights of 'sima_deit_tiny_patch16_224'"):
        softless.create_model("sima_deit_tiny_patch16_224", pretrained=True)


def test_an_answer_of_any_kind_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(request: Any, **_: Any) -> None:
        raise urllib.error.HTTPError(request.full_url, 403, "no", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refusing)
    assert not download._out_of_reach("https://example.invalid")
