"""One comparison of twins over two seeds, written once and read by many tests."""

from pathlib import Path

import pytest

from softless.tasks.cost import Speed
from softless.tasks.page import write
from tests.report.folders import write_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        *(
            write_run(root / f"softmax-seed{seed}", "softmax", seed=seed, accuracy=0.90)
            for seed in (0, 1)
        ),
        *(
            write_run(root / f"sima-seed{seed}", seed=seed, accuracy=0.97, token_scale="tokens")
            for seed in (0, 1)
        ),
    ]


@pytest.fixture(scope="session")
def speeds(runs) -> dict[Path, Speed]:
    return {
        runs[0]: Speed(2000.0, 1900.0, 2100.0, "batch 64"),
        runs[2]: Speed(2500.0, 2400.0, 2600.0, "batch 64"),
    }


@pytest.fixture(scope="session")
def page(runs, speeds, tmp_path_factory) -> str:
    out = write(runs, tmp_path_factory.mktemp("page") / "report.html", speeds=speeds)
    return out.read_text(encoding="utf-8")
