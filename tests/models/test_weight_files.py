"""Files of weights that were made to harm: nothing in them runs, none takes more memory than its
size, and each refusal names its reason.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

import softless
from softless import DataError
from softless.models.archive import scan
from softless.models.files import read_safetensors, read_tensors
from tests.models import hostile
from tests.models.hostile import CALLS, RAW, Call

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A file that is there once something has run."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path / "canary"


def run(pickled: bytes, canary: Path) -> None:
    """The control: the pickle leaves the canary where it is unpickled."""
    made: Any = pickle.loads(pickled)
    getattr(made, "close", lambda: None)()
    sys.modules.pop("canary_module", None)
    assert canary.exists()
    canary.rmdir() if canary.is_dir() else canary.unlink()


def refused(path: Path, canary: Path, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        softless.load_weights(torch.nn.Linear(1, 1), path)
    said = str(raised.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert re.search(r"state dict|copy|\.pth", said), said  # a way out
    assert not canary.exists()


@pytest.mark.bar(
    "C1", "a call in the pickle of an archive, by kind: nothing executed, the blocked name said"
)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_an_archive(name, canary):
    make, called = CALLS[name]
    path = canary.with_name("weights.pth")
    torch.save(make(canary), path)
    if name != "behind tensors":
        run(pickle.dumps(make(canary), 2), canary)
    refused(path, canary, rf"calls \S*{re.escape(called)}, and nothing in a file is executed here")


@pytest.mark.bar("C1", "hand-made pickles: nothing executed")
@pytest.mark.parametrize("name", RAW)
def test_a_pickle_that_no_pickler_writes(name, canary):
    make, called = RAW[name]
    if name != "a setter":
        run(make(canary), canary)
    refused(
        hostile.archive(canary.with_name("weights.pth"), make(canary)),
        canary,
        f"calls {called}, and nothing",
    )


def system(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps(Call(os.system, hostile.shell(canary)), protocol)


@pytest.mark.bar("C1", "bare pickles of every protocol under three names: nothing executed")
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_under_any_name(name, protocol, canary):
    path = canary.with_name(name)
    path.write_bytes(system(canary, protocol))
    run(path.read_bytes(), canary)
    refused(
        path,
        canary,
        "is a bare pickle that calls posix.system, and nothing in a file is executed here",
    )
    with pytest.raises(
        DataError,
        match=r"not a readable safetensors file: it is a bare pickle that calls posix\.system",
    ):
        read_safetensors(path)
    assert not canary.exists()


@pytest.mark.bar("C1", "tar and torch's old formats: nothing executed")
def test_formats_of_old(canary):
    """torch.save's stacked pickles before 1.6 and its tar archives before 0.4."""
    path = canary.with_name("old.pth")
    torch.save(
        {"args": Call(os.system, hostile.shell(canary))}, path, _use_new_zipfile_serialization=False
    )
    refused(path, canary, r"calls posix\.system, and nothing in a file is executed here")
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_tensors(path)["w"].tolist() == [1, 1]
    path.write_bytes(path.read_bytes() + system(canary))  # nobody unpickles what lies behind
    assert read_tensors(path)["w"].tolist() == [1, 1]
    assert not canary.exists()
    with pytest.raises(
        DataError, match=r"not a readable safetensors file: it is a file of torch\.save from before"
    ):
        read_safetensors(path)
    refused(
        hostile.tar(path, system(canary)), canary, "is a tar archive, torch's format before 0.4"
    )


@pytest.mark.bar("C1", "stacked, nested, renamed and broken pickles: nothing executed")
def test_pickles_in_odd_places(canary):
    path = canary.with_name("odd.pth")
    good, bad = pickle.dumps({"epoch": 3}, 2), system(canary)
    refused(hostile.archive(path, good + bad), canary, "calls posix.system")  # stacked
    refused(hostile.archive(path, good + b"\0"), canary, "something follows its pickle")
    refused(hostile.archive(path, bad[:-3]), canary, "calls posix.system")  # broken tail
    refused(hostile.archive(path, good[:-2]), canary, "not a checkpoint of plain tensors")
    refused(hostile.archive(path, b""), canary, "not a checkpoint of plain tensors")
    refused(hostile.archive(path, bad, compress=True), canary, "is compressed")
    refused(
        hostile.archive(path, good, more=[("odd/../data.pkl", bad)]),
        canary,
        "a name that leads out of it",
    )
    refused(
        hostile.archive(path, good, more=[("odd/DATA.PKL", bad)]),
        canary,
        "two of its members have one name",
    )
    refused(
        hostile.archive(path, good, more=[("odd2/data.pkl", bad)]),
        canary,
        r"no data\.pkl in one folder",
    )
    inner = hostile.archive(canary.with_name("inner.zip"), bad).read_bytes()
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("odd/inner.pth", inner)
    refused(path, canary, r"no data\.pkl in one folder")  # nested
    whole = hostile.archive(path, bad).read_bytes()
    path.write_bytes(whole[:-40])
    refused(path, canary, "does not end with its directory")
    path.write_bytes(hostile.archive(path, good).read_bytes() + whole[-22:])
    # two directories, of which readers choose differently
    refused(path, canary, "does not end with its directory")
    path.write_bytes(hostile.archive(path, good).read_bytes()[:-2] + b"\1\0x")
    refused(path, canary, "does not end with its directory")
    path.write_bytes(hostile.archive(path, good).read_bytes()[:-2] + b"\1\0")
    refused(path, canary, "does not end with its directory")  # a comment
    torch.save({"epoch": 3}, path)
    content = bytearray(path.read_bytes())
    content[-34:-26] = bytes(8)
    path.write_bytes(content)
    refused(path, canary, "its directory is not where its end says")
    torch.save({"epoch": 3}, path, pickle_protocol=4)
    refused(path, canary, "its pickle is not of protocol 2")
    named = hostile.archive(canary.with_name("odd.safetensors"), good)
    refused(named, canary, r"is an archive of torch\.save and not a safetensors file")
    with pytest.raises(
        DataError, match=r"not a readable safetensors file: it is an archive of torch\.save"
    ):
        read_safetensors(named)


def test_only_what_tensors_need_is_called(canary):
    """Names that torch itself allows and that allocate what they are told."""
    path = canary.with_name("large.pth")
    for function, arguments in (
        (bytearray, (1 << 40,)),
        (torch.Tensor, (1 << 20, 1 << 20)),
        (torch.UntypedStorage, (1 << 40,)),
    ):
        path = hostile.archive(path, pickle.dumps({"w": Call(function, *arguments)}, 2))
        refused(path, canary, rf"calls \S*{function.__name__}, and nothing")
    keys = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    refused(hostile.archive(path, keys), canary, "its dict has attributes of its own")


def test_files_that_are_something_else(canary):
    path = canary.with_name("weights.pth")
    for content, reason in (
        (b"", "its 0 bytes are neither safetensors nor"),
        (b"no such thing", "its 13 bytes are neither safetensors nor"),
        (b"\x1f\x8b\x08", "is a gzip archive: unpack it first"),
        (b"<!DOCTYPE html>", "is a web page and not a file of tensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_tensors(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(DataError, match="holds a list, not a state dict"):
        read_tensors(path)


def test_a_safetensors_file_under_another_name_is_read(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "weights.pth")
    assert read_tensors(tmp_path / "weights.pth")["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("length", [0x80, 0x280, 0x3C, 0x8B1F, 0x4B50, 0x28])
def test_the_length_of_a_header_may_begin_as_another_file(length, tmp_path):
    """The first byte of a pickle, of a web page, of gzip, of zip, of a pickle in text."""
    header = json.dumps({"w": hostile.entry([1], 0, 4)}, separators=(",", ":")).ljust(length)
    path = hostile.safetensors(
        tmp_path / "w.safetensors", header[:length] if length > 50 else header, bytes(4)
    )
    assert read_tensors(path)["w"].tolist() == [0]
    assert read_safetensors(path)["w"].tolist() == [0]


def test_what_torch_saves_is_read(tmp_path):
    """Nested, shared, empty and strided tensors of every dtype that models have, and the state of
    an optimiser.
    """
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    dtypes = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    held = {
        "model": model.state_dict(),
        "parameters": [
            torch.nn.Parameter(torch.ones(2)),
            torch.zeros(0),
            torch.tensor(3),
            torch.ones(2, 3).T,
        ],
        "dtypes": {str(dtype): torch.ones(2, dtype=dtype) for dtype in dtypes},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": 0.5,
        "name": "digits",
    }
    held["again"] = held["model"]
    torch.save(held, tmp_path / "all.pth")
    read = read_tensors(tmp_path / "all.pth")
    assert str(read) == str(held)


def test_a_flipped_bit_in_a_stored_tensor(tmp_path):
    """torch.load looks at no checksum."""
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.arange(64.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(64.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)["w"].equal(torch.arange(64.0))
    with pytest.raises(DataError, match="its member weights/data/0 has another checksum"):
        read_tensors(path)


@pytest.mark.bar("C10", "torch below 2.10: opens no pickled file")
def test_an_old_torch_opens_no_archive(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pth")
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(
        DataError,
        match=r"torch 2\.9\.1 is not safe for .*CVE-2026-24747.*convert the file to \.safetensors",
    ):
        read_tensors(tmp_path / "weights.pth")
    assert read_tensors(tmp_path / "weights.safetensors")["w"].tolist() == [1, 1]


MEASURED = """
import json, sys, time
from pathlib import Path
import torch
from softless.errors import DataError
from softless.models.files import read_tensors

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def reset():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held

found = {}
for name, path in json.loads(sys.argv[1]):
    reset()
    before, start, said = peak(), time.process_time(), ""
    try:
        held = read_tensors(path)
    except DataError as error:
        said = str(error)
    seconds = time.process_time() - start
    if not said:
        total = sum(float(tensor.sum()) for tensor in held.values())
        del held
    found[name] = said, peak() - before, seconds
print(json.dumps(found))
"""


@pytest.mark.bar(
    "C5",
    "zip bomb, stride-0 view, false headers and 17 more: refused within 1.1 x file + 64 MB and a "
    "second",
)
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the peak of memory is read from Linux' /proc",
)
def test_claims_cost_neither_memory_nor_time(tmp_path, record_property):
    """Peak above the baseline: at most 1.1 times the file and 64 MB; under a second of processor
    time. Honest files as a control.
    """
    state = {f"w{number}": torch.ones(1 << 20) for number in range(24)}
    torch.save(state, tmp_path / "warm.pth")
    save_file(state, tmp_path / "warm.safetensors")
    bombs = hostile.bombs(tmp_path)
    warm = [("warm", str(tmp_path / "warm.pth")), ("warm", str(tmp_path / "warm.safetensors"))]
    honest = {"archive": tmp_path / "warm.pth", "safetensors": tmp_path / "warm.safetensors"}
    files = {**honest, **{name: path for name, (path, _) in bombs.items()}}
    asked = json.dumps([*warm, *((name, str(path)) for name, path in files.items())])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, asked],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: found[name][0] for name in honest} == dict.fromkeys(honest, "")
    assert {
        name: found[name][0] for name, (_, reason) in bombs.items() if reason not in found[name][0]
    } == {}
    bars = {name: 1.1 * path.stat().st_size + (64 << 20) for name, path in files.items()}
    assert {name: found[name][1] for name in files if found[name][1] > bars[name]} == {}
    assert {name: found[name][2] for name in bombs if found[name][2] > 1} == {}
    record_property("cases", (len(bombs), len(bombs)))


def test_bytes_at_random_are_refused_in_one_sentence(tmp_path):
    """Damaged headers, directories and pickles raise DataError and nothing else."""
    generator = torch.Generator().manual_seed(1)
    save_file({"w": torch.arange(6.0), "b": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    torch.save({"model": {"w": torch.arange(6.0)}, "epoch": 3}, tmp_path / "w.pth")
    refusals: list[str] = []
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for place in torch.randint(len(content), (3,), generator=generator).tolist():
                content[place] = int(torch.randint(256, (1,), generator=generator))
            path.write_bytes(content)
            try:
                read_tensors(path)
            except DataError as error:
                refusals.append(str(error))
        for _ in range(150):
            scan(bytes(torch.randint(256, (40,), generator=generator).tolist()))
    assert len(refusals) > 100
    assert [said for said in refusals if "\n" in said] == []


@pytest.mark.bar("C2", "the source holds no call that could run a file")
def test_nothing_in_the_library_can_run_a_file():
    """Plain text, so that no trick of syntax hides it; tools/checks.py looks at the syntax."""
    forbidden = re.compile(
        r"weights_only\s*=\s*(?!True)|\bc?[pP]ickle\.load|\bimport "
        r"(pickle|dill|marshal)\b|(?<![\w.\"'])eval\(|\byaml\.(unsafe_)?load\b"
        r"|trust_remote_code|shell\s*=\s*True|allow_pickle\s*=\s*True|\bextractall\("
        r"|add_safe_globals"
    )
    names = {"    def eval(", "def eval("}  # the verb
    found = []
    for path in sorted((ROOT / "softless").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if forbidden.search(line) and not line.startswith(tuple(names)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
    assert all(
        forbidden.search(line)
        for line in (
            "torch.load(p, weights_only=False)",
            "pickle.load(f)",
            "x = eval(t)",
            "run(c, shell=True)",
        )
    )


def test_a_weight_file_can_be_read_by_whom_other_files_can(tmp_path):
    from softless.models.durable import write_tensors

    (tmp_path / "other").write_text("x")
    for _ in range(2):
        write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(2)})
        assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
