"""Models go to the hub and come back: the client that people have, against a server of its API."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save
from torch import nn

import softless
from softless.errors import DataError, UsageError
from softless.models.card import COST, LICENCE
from softless.models.files import CARD, CONFIG, FILE
from tests.models.hub_server import Hub, serving

SMALL: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "img_size": 32,
    "num_classes": 3,
}
NAMES = ("cat", "dog", "owl")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server, and the hub's client as if it had been imported with its address."""
    with serving() as (server, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        held = {name: sys.modules.pop(name) for name in list(sys.modules) if _of_hub(name)}
        yield server
        for name in [name for name in sys.modules if _of_hub(name)]:
            del sys.modules[name]
        sys.modules.update(held)
        importlib.import_module("huggingface_hub")


def _of_hub(name: str) -> bool:
    return name.partition(".")[0] == "huggingface_hub"


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    made: Any = softless.create_model("sima_deit_tiny_patch16_224", **SMALL)
    return made.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))
    return answer


def test_a_model_goes_and_comes_back(hub: Hub, model: Any, tmp_path: Path) -> None:
    folder = softless.save_weights(model, tmp_path / "model", classes=NAMES)
    address = softless.push_to_hub(folder, "lab/tiny", licence="mit", private=True, token="secret")
    assert address.endswith("lab/tiny")
    assert (hub.private, hub.tokens) == ({"lab/tiny"}, {"Bearer secret"})
    assert set(hub.repositories["lab/tiny"]) == {CONFIG, FILE, CARD, "digests.json"}
    again: Any = softless.create_model("hf-hub:lab/tiny", pretrained=True)
    assert torch.equal(logits(again), logits(model))
    assert tuple(again.pretrained_cfg["label_names"]) == NAMES
    assert softless.push_to_hub(model, "lab/tiny", message="again")
    assert hub.messages[-1] == "again"


def test_a_branch_is_made_and_written(hub: Hub, model: Any) -> None:
    softless.push_to_hub(model, "lab/tiny")
    softless.push_to_hub(model, "lab/tiny", revision="v2")
    assert hub.branches == {"v2"}
    assert hub.written == ["main", "v2"]


def test_without_weights_the_model_is_new(hub: Hub, model: Any) -> None:
    softless.push_to_hub(model, "lab/tiny")
    del hub.repositories["lab/tiny"][FILE]
    new = softless.create_model("hf-hub:lab/tiny")
    assert not torch.equal(logits(new), logits(model))
    with pytest.raises(DataError, match=FILE):
        softless.create_model("hf-hub:lab/tiny", pretrained=True)


def test_the_card(hub: Hub, model: Any, tmp_path: Path) -> None:
    trained = {"recipe": "`mine`", "test": "top-1 91.7%, 95 % interval 0.880 to 0.943"}
    folder = softless.save_weights(model, tmp_path / "model", classes=NAMES, card=trained)
    own = (folder / CARD).read_text()
    assert COST in own
    assert "cat, dog, owl" in own
    softless.push_to_hub(folder, "lab/tiny", licence="apache-2.0")
    card = hub.repositories["lab/tiny"][CARD].decode()
    assert card.startswith("---\nlibrary_name: softless\nlicense: apache-2.0\n")
    counts = softless.cost(model)
    for text in (
        f"{counts.macs:,}",
        f"{counts.parameters:,}",
        "hf-hub:lab/tiny",
        *trained.values(),
    ):
        assert text in card
    assert "gelu" in card
    assert COST not in card
    assert str(tmp_path) not in card
    assert (folder / CARD).read_text() == own, "the folder itself is left as it was"
    softless.push_to_hub(folder, "lab/open")
    assert LICENCE in hub.repositories["lab/open"][CARD].decode()


def test_timm_s_own_repositories_come_with_another_attention(hub: Hub) -> None:
    host: Any = timm.create_model("deit_tiny_patch16_224", **SMALL).eval()
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "custom_load": False, "tag": "x"}
    args = {key: value for key, value in SMALL.items() if key != "num_classes"}
    content = {"architecture": "deit_tiny_patch16_224", "num_classes": 3, "model_args": args}
    hub.repositories["timm/host"] = {}
    hub.commit(
        "timm/host",
        {
            CONFIG: json.dumps({**content, "pretrained_cfg": cfg}).encode(),
            FILE: save(dict(host.state_dict())),
        },
        "timm's",
    )
    same: Any = softless.create_model("hf-hub:timm/host", pretrained=True)
    assert torch.allclose(logits(same), logits(host), atol=1e-6)
    assert tuple(same.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    other = softless.create_model("hf-hub:timm/host", "sima", pretrained=True)
    assert torch.equal(
        other.state_dict()["blocks.0.attn.qkv.weight"], host.blocks[0].attn.qkv.weight
    )
    assert not torch.allclose(logits(other), logits(host), atol=1e-3)
    ten = softless.create_model("hf-hub:timm/host", pretrained=True, num_classes=10)
    assert logits(ten).shape == (1, 10)


def test_a_repository_stands_in_the_place_of_a_run(hub: Hub, model: Any, tmp_path: Path) -> None:
    from PIL import Image

    softless.push_to_hub(softless.save_weights(model, tmp_path / "m", classes=NAMES), "lab/tiny")
    Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / "one.png")
    answers = [
        softless.predict(name, tmp_path / "one.png", tmp_path / f"out{index}")
        for index, name in enumerate(("hf-hub:lab/tiny", f"local-dir:{tmp_path / 'm'}"))
    ]
    tables = [(tmp_path / f"out{i}" / "predictions.csv").read_text() for i in (0, 1)]
    assert answers[0] is not None
    assert tables[0] == tables[1]


def test_what_is_fetched_stays(hub: Hub, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    softless.push_to_hub(model, "lab/tiny")
    softless.create_model("hf-hub:lab/tiny", pretrained=True)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = softless.create_model("hf-hub:lab/tiny", pretrained=True)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        softless.create_model("hf-hub:lab/other", pretrained=True)


def test_damage_on_the_way_is_seen(hub: Hub, model: Any) -> None:
    softless.push_to_hub(model, "lab/tiny")
    weights = bytearray(hub.repositories["lab/tiny"][FILE])
    weights[-1] ^= 1
    hub.commit("lab/tiny", {FILE: bytes(weights)}, "a bit")
    with pytest.raises(DataError, match="sha256"):
        softless.create_model("hf-hub:lab/tiny", pretrained=True)


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:tiny", "hf-hub:a/b/c", "hf-hub:../x", "hf_hub:a b/c"]
)
def test_no_name_of_a_repository(hub: Hub, name: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        softless.create_model(name)


def test_what_is_wrong_is_one_sentence(hub: Hub, model: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'lab/none' is not on this machine"):
        softless.create_model("hf-hub:lab/none", pretrained=True)
    with pytest.raises(UsageError, match="OWNER/NAME"):
        softless.push_to_hub(model, "tiny")
    with pytest.raises(UsageError, match="holds no model"):
        softless.push_to_hub(tmp_path, "lab/tiny")
    softless.push_to_hub(model, "lab/tiny")
    with pytest.raises(UsageError, match="says its operator itself"):
        softless.create_model("hf-hub:lab/tiny", "soft")
    hub.refuse = 403
    with pytest.raises(UsageError, match="cannot be written") as caught:
        softless.push_to_hub(model, "lab/tiny")
    assert "\n" not in str(caught.value)
