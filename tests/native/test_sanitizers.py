"""The kernels' own program, tests/native/check.cpp, under AddressSanitizer and
UndefinedBehaviorSanitizer.

It is compiled with the flags of CMakeLists.txt: once with the ways of this processor, and once with
the tiles of AMX as plain arrays, so that their packing and indices are checked on a processor
without them.
"""

import subprocess
from pathlib import Path

import pytest

from tests.building import ROOT, cmake, no_kernels

SANITIZERS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `check` and `check_emulated`."""
    if why := no_kernels():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("sanitized")
    settings = [
        "-DSOFTLESS_CHECK=ON",
        "-DCMAKE_BUILD_TYPE=Sanitized",
        f"-DCMAKE_CXX_FLAGS_SANITIZED={SANITIZERS}",
    ]
    for command in (
        [cmake(), "-S", str(ROOT), "-B", str(folder), *settings],
        [cmake(), "--build", str(folder), "-j2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def check(program: Path, *ways: str) -> list[str]:
    """The ways that the program took and found nothing wrong with."""
    done = subprocess.run([program, *ways], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
    found, _, taken = done.stdout.partition(" 0 wrong, by")
    assert found.endswith(" cases,")
    return taken.split()


def processor_has(feature: str) -> bool:
    return feature in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()


def test_every_way_of_this_processor(programs: Path) -> None:
    assert ("avx2" in check(programs / "check")) == processor_has("avx2")


def test_emulated_tiles(programs: Path) -> None:
    if not processor_has("avx512_bf16"):
        pytest.skip(
            "the kernels of tiles take AVX-512-BF16 for what fills no tile, and this processor "
            "has none"
        )
    assert check(programs / "check_emulated", "amx") == ["amx"]
