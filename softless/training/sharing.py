"""The world of a command that is no training: its ranks were asked the same, share the work, and
end together.
"""

import _thread
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softless.errors import Interrupted, RankGone, UsageError
from softless.models.durable import delete, make_folder, write_text
from softless.training.agreement import agree_on_arguments
from softless.training.signals import Signals, Stop
from softless.training.world import World, hearing, join, named

WHOLE = "no file is left half written"
LOOK = 2.0  # seconds between two looks at the other ranks
DAY = 24 * 60.0  # minutes that a rank with a short share waits for one with a long one


@contextmanager
def sharing(
    device: str, arguments: Mapping[str, Any], folder: Path | None = None
) -> Iterator[World]:
    """The world of a command that is no training: its ranks were asked the same, and a signal to
    one ends all.

    Args:
        device: of the computation, by name.
        arguments: of the command, which every rank must have been given alike.
        folder: of the results, where there is one; `see_one_folder` is called before anything is
            written there.

    Raises:
        UsageError: a rank was asked something else.
        RankGone: another rank is gone.
        Interrupted: a signal came.
    """
    with join(device, DAY, folder) as world:
        if world.size == 1:
            yield world
            return
        with Signals(ranks=world.size, stands=WHOLE) as signals, hearing(world):
            signals.last_words = world.say
            try:
                with signals.interruptible(alone=True):
                    agree_on_arguments(world, arguments)
                    with _watched(world):
                        yield world
                    # who is done waits here, so that nobody is missed who may end
                    world.gather(None)
            except Stop as stop:
                # whoever started the ranks ends all as soon as one is gone
                if gone := world.gone():
                    message = named(gone, world)  # with its last words, which may say so already
                    raise RankGone(message if WHOLE in message else f"{message}: {WHOLE}") from stop
                number = signals.received or signal.SIGTERM
                raise Interrupted(f"{number.name}: ended; {WHOLE}", 128 + number) from stop


@contextmanager
def _watched(world: World) -> Iterator[None]:
    """A stretch in which a rank of this machine that is gone ends this one too, also between
    exchanges.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            if world.gone():
                _thread.interrupt_main(signal.SIGTERM)
                return

    threading.Thread(target=watch, name="ranks", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def see_one_folder(world: World, folder: Path) -> None:
    """Make the folder, and compare whether all ranks see that one; their last words stand there
    from now on.

    Raises:
        UsageError: one does not; the rank is named.
        StorageError: it cannot be made.
    """
    if world.size == 1:
        return
    mark = world.first(lambda: _marked(folder))
    try:
        world.together(lambda: _see(folder, mark))
    finally:
        if world.is_first:
            delete(folder / mark)
    world.may_speak()


def _marked(folder: Path) -> str:
    mark = f".seen-{uuid.uuid4().hex}"
    make_folder(folder)
    write_text(folder / mark, str(os.getpid()))
    return mark


def _see(folder: Path, mark: str) -> None:
    if not (folder / mark).exists():
        raise UsageError(
            f"{folder.absolute()} is not the folder that rank 0 sees: give all ranks one that "
            "they share"
        )
