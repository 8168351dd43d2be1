"""A published folder: timm and softless rebuild the model from it, a flipped bit is found, and its
config.json can name nothing but a model.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softless
from softless import DataError, UsageError
from softless.cli.main import main
from softless.models import load_weights
from tests.models.lively import lively

create_model: Any = softless.create_model
save_weights: Any = softless.save_weights
SMALL: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 48,
    "num_heads": 3,
    "num_classes": 7,
    "img_size": 32,
}
SIMA = "sima_deit_tiny_patch16_224"
NAMES = {"model.safetensors", "config.json", "digests.json", "README.md"}

# name, operator, arguments, and the architecture that timm is told; timm knows all but the last two
MODELS: dict[str, tuple[str, str | None, dict[str, Any], str]] = {
    "registered": (SIMA, None, SMALL, SIMA),
    "alias": (
        "sima_nano_12_p16",
        None,
        {"depth": 1, "cls_attn_layers": 1, "num_classes": 7},
        "sima_nano_12_p16",
    ),
    "host and operator": (
        "deit_tiny_patch16_224",
        "sima",
        {**SMALL, "token_scale": "tokens"},
        SIMA,
    ),
    "timm's own": ("deit_tiny_patch16_224", None, SMALL, "deit_tiny_patch16_224"),
    "pyramid": (
        "soft_tiny_224",
        None,
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 16, 16), "num_heads": 2, "num_classes": 7},
        "soft_tiny_224",
    ),
    "cvt": (
        "cvt_13_224",
        "sima",
        {"depths": (1, 1, 1), "embed_dims": (8, 16, 24), "num_heads": 1, "num_classes": 7},
        "sima_cvt_13_224",
    ),
    "no name, a ViT": (
        "deit_tiny_patch16_224",
        "linformer",
        {**SMALL, "drop_path_rate": 0.1, "act": "relu"},
        "linformer_deit_tiny_patch16_224",
    ),
    "no name, an XCiT": (
        "xcit_nano_12_p16_224",
        "xca",
        {"depth": 2, "num_classes": 7, "lpi": False},
        "xca_xcit_nano_12_p16_224",
    ),
}


def image(model: Any) -> torch.Tensor:
    side = 32 if model.construction.arguments.get("img_size") == 32 else 64
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> Any:
    return create_model(SIMA, **SMALL).eval()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return save_weights(model, tmp_path / "published")


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_comes_back(name, tmp_path):
    host, op, arguments, architecture = MODELS[name]
    made = create_model(host, op, **arguments)
    made = lively(made, image(made))
    assert save_weights(made, tmp_path / "new" / "w") == tmp_path / "new" / "w"
    assert {path.name for path in (tmp_path / "new" / "w").iterdir()} == NAMES
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "w"]
    source = f"local-dir:{tmp_path / 'new' / 'w'}"
    config = json.loads((tmp_path / "new" / "w" / "config.json").read_text())
    assert config["architecture"] == architecture
    expected = made(image(made))
    ours = create_model(source, pretrained=True).eval()
    assert torch.equal(ours(image(made)), expected)
    assert not torch.equal(create_model(source).eval()(image(made)), expected)
    if name.startswith("no name"):
        assert config["softless"] == {"host": host, "op": op}
        # never the host's own attention
        with pytest.raises(RuntimeError, match=f"Unknown model .{architecture}"):
            timm.create_model(source, pretrained=True)
    else:
        theirs: Any = timm.create_model(source, pretrained=True).eval()
        assert torch.equal(theirs(image(made)), expected)
        assert theirs.pretrained_cfg["crop_pct"] == config["pretrained_cfg"]["crop_pct"]


def test_a_model_that_timm_made_is_published_too(tmp_path):
    made: Any = timm.create_model(SIMA, **SMALL).eval()
    made.reset_classifier(5)
    again = create_model(f"local-dir:{save_weights(made, tmp_path / 'w')}", pretrained=True).eval()
    assert torch.equal(again(torch.ones(1, 3, 32, 32)), made(torch.ones(1, 3, 32, 32)))


def test_other_classes_from_a_folder(model, folder):
    other = create_model(f"local-dir:{folder}", pretrained=True, num_classes=4)
    assert other.head.weight.shape == (4, 48)
    assert torch.equal(other.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(UsageError, match="says its operator itself"):
        create_model(f"local-dir:{folder}", "xca")


def test_digests_are_those_of_the_files_and_the_tensors(model, folder):
    told = json.loads((folder / "digests.json").read_text())
    assert told["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "config.json")
    }
    assert told["tensors"] == {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.bar("C4", "one bit flipped in published weights: refused with both digests")
def test_300_flipped_bits(model, folder, record_property):
    """Each is refused with the file and both digests; the whole file loads before and after.

    Without digests most are not seen.
    """
    path = folder / "model.safetensors"
    whole, target = path.read_bytes(), create_model(SIMA, **SMALL)
    expected = hashlib.sha256(whole).hexdigest()
    load_weights(target, folder)
    places = torch.randint(
        len(whole) * 8, (300,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    missed = []
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = hashlib.sha256(content).hexdigest()
        try:
            load_weights(target, folder)
            missed.append(place)
        except DataError as error:
            said = str(error)
            missed += [place] * (not all(part in said for part in (str(path), expected, found)))
    record_property("cases", (300 - len(missed), 300))
    assert missed == []
    path.write_bytes(whole)
    load_weights(target, path)
    (folder / "digests.json").unlink()
    content = bytearray(whole)
    content[-3] ^= 1
    path.write_bytes(content)
    load_weights(target, folder)  # the control


@pytest.mark.bar("C3", "a wrong digest: file, expected, found and tensors named")
def test_a_wrong_digest_names_the_tensors(model, folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    changed = {**state, "head.bias": state["head.bias"] + 1, "cls_token": state["cls_token"] * 2}
    del changed["norm.bias"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(changed, path)
    with pytest.raises(
        DataError, match=r"expects the sha256 \w{64}, found is \w{64}; of its tensors differ: "
    ) as raised:
        load_weights(model, folder)
    named = str(raised.value).split("differ: ")[1].split("; copy")[0].split(", ")
    assert set(named) == {"head.bias", "cls_token", "norm.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(DataError, match="is not the file that was saved"):
        create_model(f"local-dir:{folder}", pretrained=True)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="its header is damaged; copy the folder again"):
        load_weights(model, folder)
    path.unlink()
    with pytest.raises(DataError, match=r"no file .*model\.safetensors"):
        load_weights(model, folder)


def test_a_changed_config_and_damaged_digests(model, folder):
    config, digests = folder / "config.json", folder / "digests.json"
    whole = config.read_text()
    config.write_text(whole.replace("0.485", "0.486"))
    for load in (lambda: load_weights(model, folder), lambda: create_model(f"local-dir:{folder}")):
        with pytest.raises(DataError, match=r"config\.json is not the file that was saved"):
            load()
    config.write_text(whole)
    for content in (
        "{",
        "[]",
        '{"files": {}}',
        '{"files": {"model.safetensors": 3}, "tensors": {}}',
        "[" * 100_000,
    ):
        digests.write_text(content)
        with pytest.raises(DataError, match=r"digests\.json"):
            load_weights(model, folder)


def test_a_file_that_the_digests_do_not_list_is_read(model, folder):
    save_file(model.state_dict(), folder / "other.safetensors")
    assert load_weights(model, folder / "other.safetensors").loaded == len(model.state_dict())


@pytest.mark.bar(
    "C6", "NaN or infinity in weights: refused, with the first tensors, unless allowed"
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = list(state)[:7]
    for name in bad:
        state[name].view(-1)[-1] = value
    save_file(state, tmp_path / "bad.safetensors")
    torch.save(
        {"model": state, "optimizer": {"exp_avg": torch.tensor(value)}}, tmp_path / "bad.pth"
    )
    for source in (tmp_path / "bad.safetensors", tmp_path / "bad.pth", state):
        with pytest.raises(
            DataError, match=r"holds NaN or infinity in .* and 2 more: .*allow_nonfinite=True"
        ) as raised:
            load_weights(create_model(SIMA, **SMALL), source)
        named = re.findall(r"[\w.]+", str(raised.value).split("infinity in ")[1].split(" and 2")[0])
        assert len(named) == 5
        assert set(named) <= set(bad)
        loaded = create_model(SIMA, **SMALL)
        load_weights(loaded, source, allow_nonfinite=True)
        assert not loaded.state_dict()[bad[0]].isfinite().all()
    load_weights(model, state, allow_nonfinite=True)
    with pytest.raises(DataError, match="the model holds NaN or infinity"):
        save_weights(model, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_command_takes_them_when_it_is_told(tmp_path, capsys):
    state = timm.create_model("deit_tiny_patch16_224").state_dict()
    state["head.bias"][0] = float("nan")
    save_file(state, tmp_path / "bad.safetensors")
    words = ["swap", "deit_tiny_patch16_224", "--weights", str(tmp_path / "bad.safetensors")]
    assert main(words) == 2
    assert "holds NaN or infinity in head.bias" in capsys.readouterr().err
    assert main([*words, "--allow-nonfinite"]) == 0


def test_what_cannot_be_described_is_refused(model, tmp_path):
    swapped: Any = create_model("deit_tiny_patch16_224", **SMALL)
    softless.swap(swapped, "sima")
    swapped.blocks[0].attn.proj = torch.nn.Sequential(swapped.blocks[0].attn.proj)
    resized = create_model("sima_deit_tiny_patch16_224", **SMALL)
    resized.set_input_size((64, 64))
    frozen = create_model(SIMA, **SMALL)
    frozen.blocks[0].attn.options = {**frozen.blocks[0].attn.options, "token_scale": "tokens"}
    for made, message in (
        (
            timm.create_model("deit_tiny_patch16_224", **SMALL),
            r"does not tell how it was built: make it with softless\.create_model",
        ),
        (
            swapped,
            (
                r"changed since it was made, first in blocks\.0\.attn\.proj \(Linear\(.* then, "
                r"Sequential\(\) now\): a config"
            ),
        ),
        (resized, r"changed since it was made, first in .*: a config\.json describes"),
        (frozen, r"changed since it was made, first in blocks\.0\.attn"),
        (
            create_model(SIMA, **SMALL, norm_layer=torch.nn.LayerNorm),
            "cannot say norm_layer=.*known are ",
        ),
        (
            create_model(SIMA, **SMALL, in_chans=1),
            "takes 1 channels and its mean has 3 numbers: pass data=",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            save_weights(made, tmp_path / "w")
    with pytest.raises(UsageError, match="data has no url; it has: crop_mode"):
        save_weights(model, tmp_path / "w", data={"url": "x"})
    assert list(tmp_path.iterdir()) == []


def test_the_preparation_of_images_travels_along(tmp_path):
    made = create_model(SIMA, **SMALL, in_chans=1)
    save_weights(made, tmp_path / "w", data={"mean": (0.13,), "std": (0.31,), "crop_pct": 0.875})
    for again in (
        create_model(f"local-dir:{tmp_path / 'w'}"),
        timm.create_model(f"local-dir:{tmp_path / 'w'}"),
    ):
        data = timm.data.resolve_model_data_config(again)
        assert (
            tuple(data["mean"]),
            tuple(data["std"]),
            data["crop_pct"],
            tuple(data["input_size"]),
        ) == (
            (0.13,),
            (0.31,),
            0.875,
            (1, 32, 32),
        )


def test_a_folder_in_use_is_left_alone(model, folder, tmp_path):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UsageError, match="holds files already: name a new folder"):
        save_weights(model, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "w"):
        with pytest.raises(UsageError, match=r"holds files already|cannot write"):
            save_weights(model, wrong)
    (tmp_path / "empty").mkdir()
    save_weights(model, tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == NAMES


@pytest.mark.bar("C3", "a fault while weights are published: no folder is left")
@pytest.mark.parametrize("when", ["model.safetensors", "config.json", "digests.json", "flush"])
def test_whole_or_not_at_all(when, model, tmp_path, monkeypatch):
    """A disk that fails at each of the files, and at the flush."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    write = Path.write_bytes
    if when == "flush":
        monkeypatch.setattr(os, "fsync", fail)
    elif when == "model.safetensors":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    else:
        monkeypatch.setattr(
            Path,
            "write_bytes",
            lambda self, *a: fail() if self.name == f"{when}.tmp" else write(self, *a),
        )
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device"):
        save_weights(model, tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys, torch, softless
from pathlib import Path
model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3, num_classes=7, img_size=32)
sync, count = os.fsync, [0]
def dies(handle):
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os._exit(9)
    sync(handle)
os.fsync = dies
softless.save_weights(model, sys.argv[1])
"""


def test_a_process_that_dies_leaves_no_folder(model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "w"), "4"], check=False, capture_output=True
    )
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "w").exists()
    save_weights(model, tmp_path / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


CONFIGS: dict[str, dict[str, Any]] = {
    "address of weights": {"pretrained_cfg": {"url": "x"}},
    "hub": {"pretrained_cfg": {"hf_hub_id": "a/b"}},
    "file": {"pretrained_cfg": {"file": "w.pth"}},
    "loader": {"pretrained_cfg": {"custom_load": True}},
    "configuration in the arguments": {"model_args": {"pretrained_cfg": {"file": "w.pth"}}},
    "checkpoint in the arguments": {"model_args": {"checkpoint_path": "w.pth"}},
    "layer by name": {"model_args": {"norm_layer": "os"}},
    "path as a value": {"model_args": {"global_pool": "/etc/passwd"}},
    "parent as a value": {"model_args": {"act": "../relu"}},
    "address as a value": {"pretrained_cfg": {"interpolation": "http://a"}},
    "code": {"auto_map": {"AutoModel": "x.Y"}},
    "remote code": {"trust_remote_code": True},
    "path as architecture": {"architecture": "local-dir:/etc"},
    "hub as architecture": {"architecture": "hf-hub:a/b"},
    "number as architecture": {"architecture": 3},
    "operator": {"softless": {"host": SIMA, "op": "os.system"}},
    "more of ours": {"softless": {"host": "deit_tiny_patch16_224", "op": "sima", "module": "os"}},
    "table as a value": {"model_args": {"depth": {"a": 1}}},
    "huge": {"model_args": {"depth": 10**9}},
    "not a number": {"model_args": {"mlp_ratio": float("nan")}},
    "not a table": {"model_args": [1]},
    "a word for a number": {"model_args": {"depth": "two"}},
    "a list for a number": {"model_args": {"embed_dim": [48, 48]}},
}


@pytest.mark.bar("C8", "hostile config.json: refused")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_names_nothing_but_a_model(name, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (folder / "digests.json").unlink()
    for key, value in CONFIGS[name].items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"config\.json (has|names|is not|builds no model)"):
        create_model(f"local-dir:{folder}", pretrained=True)


def test_fine_tuning_starts_from_a_folder(model, folder):
    from softless.training.model import load_start

    other = create_model(SIMA, **SMALL)
    load_start(other, folder)
    assert torch.equal(other.head.weight, model.head.weight)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="is not the file that was saved"):
        load_start(other, folder)


def test_the_name_of_a_file_is_no_folder(tmp_path: Path) -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, embed_dim=64, num_heads=1)
    with pytest.raises(
        softless.UsageError,
        match=r"w\.safetensors is the name of a file, and save_weights writes a folder",
    ):
        softless.save_weights(model, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
