"""Files of exported models: what is planted is found by kind and place in every format, nothing
unknown passes for exp-free, and what is damaged or hostile is one sentence.
"""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import softless
from softless import DataError, UsageError
from softless.cli.main import main
from softless.measure.graphs.files import ENDINGS
from tests.measure import written
from tests.measure.test_cost import KINDS_OF_CALLS
from tests.measure.written import PLACE, PLANTED, SHAPE, WRITERS

every_format = pytest.mark.parametrize("ending", WRITERS)


def test_every_reader_has_a_writer() -> None:
    assert tuple(WRITERS) == ENDINGS


@every_format
@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found_by_kind_number_and_place(
    ending: str, planted: str, tmp_path: Path
) -> None:
    found = softless.audit(WRITERS[ending](tmp_path, planted))
    assert found.kinds == {planted: 40}
    assert not found.exp_free
    assert found.exit_code == 1
    (only,) = found.findings
    # a delegate has a number, and no name of a module
    assert PLACE in only.where or (ending == ".pte" and only.where == "delegate 0")
    assert only.sized
    assert found.rank == len(SHAPE)
    assert found.file == f"model{ending}"
    assert sum(found.nodes.values()) >= 2


@every_format
def test_without_anything_planted_a_file_is_exp_free(ending: str, tmp_path: Path) -> None:
    found = softless.audit(str(WRITERS[ending](tmp_path, "relu")))
    assert found.exp_free
    assert found.exit_code == 0
    assert found.findings == ()
    assert str(found).startswith("exp-free: ")


@every_format
def test_the_command_line_says_it_and_ends_with_it(
    ending: str, tmp_path: Path, capsys: Any
) -> None:
    path = str(WRITERS[ending](tmp_path, "gelu"))
    assert main(["audit", path]) == 1
    assert "gelu" in capsys.readouterr().out
    assert main(["audit", path, "--allow", "softmax", "gelu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("not exp-free")
    assert "allowed, and left: gelu" in out
    assert main(["audit", path, "--allow", "softmax"]) == 1
    capsys.readouterr()
    assert main(["audit", path, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kinds"] == {"gelu": 40}
    for words in (["--allow", "gleu"], ["--op", "sima"], ["--input-size", "64"]):
        assert main(["audit", path, *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_kind_has_a_nearest_one(tmp_path: Path) -> None:
    model = torch.nn.GELU()
    with pytest.raises(UsageError, match="Did you mean 'gelu'"):
        softless.audit(model, (1, 3, 4), allow=["gleu"])
    allowed = softless.audit(model, (1, 3, 4), allow="gelu")
    assert not allowed.exp_free
    assert allowed.exit_code == 0


def test_endings_that_no_reader_knows_are_one_sentence_with_the_list(
    tmp_path: Path, capsys: Any
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    with pytest.raises(DataError, match=r"\.onnx, \.xml, \.tflite, \.pte or \.mlpackage"):
        softless.audit(weights)
    assert main(["audit", str(weights)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    # a name without such a file is the name of a model, as before
    assert main(["audit", "no_such_model.v1"]) == 2
    assert "no model named" in capsys.readouterr().err


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    path = written.write_onnx(tmp_path, "exp").rename(tmp_path / "MODEL.ONNX")
    assert softless.audit(path).kinds == {"exp": 40}


# -- damaged and hostile files


@every_format
def test_a_missing_file_is_one_sentence(ending: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no f"):
        softless.audit(tmp_path / f"none{ending}")


def _bytes_of(path: Path) -> Path:
    return path / "Data/com.apple.CoreML/model.mlmodel" if path.is_dir() else path


@every_format
def test_a_file_that_is_cut_or_changed_is_one_sentence_or_is_read(
    ending: str, tmp_path: Path
) -> None:
    path = WRITERS[ending](tmp_path, "gelu")
    target = _bytes_of(path)
    whole = target.read_bytes()
    refused = []
    generator = torch.Generator().manual_seed(0)
    cuts = sorted({*range(0, len(whole), max(1, len(whole) // 60)), 1, 2, 5, 9})
    damaged = [whole[:cut] for cut in cuts]
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(3):
            place = int(torch.randint(len(whole), (), generator=generator))
            changed[place] = int(torch.randint(256, (), generator=generator))
        damaged.append(bytes(changed))
    for content in damaged:
        target.write_bytes(content)
        try:
            softless.audit(path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in sentence for sentence in refused)


@every_format
def test_noise_and_other_formats_are_one_sentence(ending: str, tmp_path: Path) -> None:
    path = WRITERS[ending](tmp_path, "gelu")
    for content in (
        b"",
        b"\0" * 64,
        b"\xff" * 64,
        b"version https://git-lfs",
        b"<net/>",
        b"PK\3\4",
    ):
        _bytes_of(path).write_bytes(content)
        with pytest.raises(DataError, match=r"is not a|holds no ML Program"):
            softless.audit(path)


def test_a_pt2_file_is_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    plain, evil = written.write_pt2(tmp_path, "gelu"), tmp_path / "evil.pt2"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            hostile = "sample_inputs" in name
            target.writestr(name, pickle.dumps(Evil()) if hostile else source.read(name))
    assert softless.audit(evil).kinds == {"gelu": 40}
    assert not (tmp_path / "ran").exists()


def test_xml_with_entities_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    layers = [("Parameter", "x", written.PORTS), ("Exp", "&d;", written.PORTS)]
    lines = ['<!ENTITY a "aaaaaaaaaa">']
    lines += [f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abc", "bcd", strict=True)]
    for text in (
        written.xml(layers, head=f"<!DOCTYPE net [{''.join(lines)}]>"),
        written.xml(layers[:1], head='<!DOCTYPE net SYSTEM "file:///etc/passwd">'),
    ):
        for encoding in ("utf-8", "utf-16"):
            path.write_text(text, encoding=encoding)
            with pytest.raises(DataError, match="DOCTYPE"):
                softless.audit(path)
    path.write_text("<net>" * 2000, encoding="utf-8")
    with pytest.raises(DataError, match="too deep"):
        softless.audit(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\secret", "a/../../b", ""])
def test_external_data_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    import onnx

    path = written.write_onnx(tmp_path, "relu")
    model = onnx.load(path)
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="outside its folder"):
        softless.audit(path)
    package = written.mlpackage(tmp_path, path=name)
    with pytest.raises(DataError, match=r"outside its folder|that is not there|names no model"):
        softless.audit(package)


def test_external_data_that_is_a_link_is_refused_and_what_is_missing_is_not_needed(
    tmp_path: Path,
) -> None:
    import onnx

    path = written.write_onnx(tmp_path, "exp")
    model = onnx.load(path)
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="model.data")
    path.write_bytes(model.SerializeToString())
    assert softless.audit(path).kinds == {"exp": 40}
    (tmp_path / "model.data").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="is a link"):
        softless.audit(path)


# -- .pt2


@pytest.mark.parametrize(("call", "kinds"), KINDS_OF_CALLS)
def test_a_saved_program_is_read_as_the_program(
    call: Any, kinds: dict[str, int], tmp_path: Path
) -> None:
    class Calls(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Module()
            self.inner.forward = lambda x: call(x.flatten(1).view(-1, 4))
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.inner(image * self.scale) + torch.arange(4.0).cos().sum()

    program = torch.export.export(Calls(), (torch.rand(1, 1, 3, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    read, held = softless.audit(tmp_path / "model.pt2"), softless.audit(program)
    assert dict(read.kinds) == kinds
    assert read.findings == held.findings
    assert (read.roots, read.divisions) == (held.roots, held.divisions)
    assert read.per_grid == {"trigonometric": 4}


def test_a_saved_program_of_any_size_says_so(tmp_path: Path) -> None:
    model = softless.create_model("deit_tiny_patch16_224", op="softmax", depth=1).eval()
    batch = [{0: torch.export.Dim("batch", min=1, max=8)}]
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "model.pt2")
    read, held = softless.audit(tmp_path / "model.pt2"), softless.audit(program)
    assert read.kinds == held.kinds == {"gelu": 2 * 5 * 768, "softmax": 2 * 3 * 5 * 5}
    assert read.dynamic
    assert held.dynamic
    assert {each.where for each in read.findings} == {each.where for each in held.findings}
