"""One process at a time trains in a folder; a dead one is taken over from."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from softless.errors import UsageError
from softless.training.claim import Claim, alive, holder


@pytest.mark.bar("A19", "two processes in one folder: the second is refused")
def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path):
    claim = Claim.take(tmp_path)
    with pytest.raises(
        UsageError, match=rf"is in use by process {os.getpid()} on {socket.gethostname()} since 20\d\d-"
    ):
        Claim.take(tmp_path)
    held = holder(tmp_path)
    assert held is not None
    assert held["pid"] == os.getpid()
    claim.end("finished")
    assert holder(tmp_path) is None
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "finished"
    Claim.take(tmp_path).end("finished")


@pytest.mark.bar("A19", "the lock of a dead process: taken over with a warning")
def test_a_dead_one_is_taken_over_from_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    code = (
        "import sys; from pathlib import Path; from softless.training.claim import Claim; Claim.take(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert holder(tmp_path) is None
    Claim.take(tmp_path).end("finished")
    assert "is gone: taking over" in caplog.text


def test_a_number_that_was_given_out_again_is_another_process(tmp_path: Path):
    Claim.take(tmp_path)
    held = json.loads((tmp_path / "lock").read_text())
    assert alive(held)
    assert not alive({**held, "process": "1"})
    assert not alive({**held, "pid": 2**22 + 1})


def test_another_host_cannot_be_seen_from_here(tmp_path: Path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "2026-01-01", "process": "1"}))
    with pytest.raises(UsageError, match=r"process 1 on elsewhere since 2026-01-01: .*if it is gone, delete .*lock"):
        Claim.take(tmp_path)


def test_an_empty_lock_is_nobodys(tmp_path: Path):
    (tmp_path / "lock").write_text("")
    Claim.take(tmp_path)
    held = holder(tmp_path)
    assert held is not None
    assert held["pid"] == os.getpid()
