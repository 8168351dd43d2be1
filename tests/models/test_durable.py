"""What is written whole is flushed in a way that Windows allows: only what is open for writing.

Windows is imitated.
"""

import errno
import os
from pathlib import Path

import pytest
import torch

from softless.models import create_model, durable
from softless.models.publish import save_weights


@pytest.fixture
def as_windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """fsync refuses what was opened for reading, and folders cannot be opened; returns the files
    that were flushed.
    """
    import fcntl

    flushed: list[int] = []
    real, opened = os.fsync, os.open

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(os.fstat(handle).st_ino)
        real(handle)

    def open_(path, flags, *args, **more):
        if not isinstance(path, int) and Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *args, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", open_)
    return flushed


def test_every_writer_flushes_what_it_wrote(tmp_path: Path, as_windows: list[int]):
    durable.write_whole(tmp_path / "whole", lambda path: path.write_bytes(b"x"))
    durable.write_digested(tmp_path / "digested", lambda file: file.write(b"x"))
    durable.write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
    for name in ("whole", "digested", "tensors"):
        assert (tmp_path / name).stat().st_ino in as_windows, name


def test_published_weights_too(tmp_path: Path, as_windows: list[int]):
    model = create_model(
        "sima_deit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=2
    )
    save_weights(model, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_ino in as_windows, path.name
