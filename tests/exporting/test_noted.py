"""What a run's folder and its page say of exported files."""

import json
import logging
import re
import shutil
from dataclasses import replace

import pytest

import softless
from softless.errors import DataError
from softless.experiment.files import EXPORTS
from softless.experiment.folder import FILES, REPORT
from softless.exporting import proof
from softless.exporting.measured import Parity
from softless.report.runs import read_run
from softless.tasks.page import write
from tests.report.folders import write_run


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A finished run with its page, before anything is exported."""
    folder = write_run(tmp_path_factory.mktemp("noted") / "run")
    write([folder], folder / REPORT)
    return folder


@pytest.fixture
def run(shown, tmp_path):
    return shutil.copytree(shown, tmp_path / "run")


def rows(run):
    return [json.loads(line) for line in (run / EXPORTS).read_text().splitlines()]


def test_a_page_without_exports_is_as_it_was(run):
    """And says nothing of them."""
    before = (run / REPORT).read_text()
    assert "xported" not in before
    write([run], run / REPORT)
    assert (run / REPORT).read_text() == before


def test_the_section_that_is_put_in_is_the_one_that_is_drawn(run, tmp_path):
    """The rest of the page stays as it is to the byte: speeds, and pictures of images that have
    gone.
    """
    before = (run / REPORT).read_text()
    report = softless.export(run, "pt2", tmp_path / "files")
    after = (run / REPORT).read_text()
    write([run], tmp_path / "anew.html")
    assert after == (tmp_path / "anew.html").read_text()
    without = re.sub(
        r'<section aria-labelledby="exported">.*?</section>', "", after, flags=re.DOTALL
    )
    assert without.replace('<a href="#exported">Exported files</a>', "") == before
    section = after.split('<section aria-labelledby="exported">')[1].split("</section>")[0]
    words = re.sub(r"<[^>]*>", " ", section)
    file = report.files[0]
    for said in ("model.pt2", "edge", "passed", f"{file.parity.difference:.1e}", "gelu"):
        assert said in words, said
    assert "360 test images" in words
    assert str(tmp_path) not in after + (run / EXPORTS).read_text()


def test_the_same_file_again_replaces_its_line_and_another_stands_beside(run, tmp_path):
    softless.export(run, "pt2", tmp_path / "a")
    softless.export(run, "pt2", tmp_path / "b")
    assert len(rows(run)) == 1
    softless.export(run, "pt2", tmp_path / "c", size=(32, 48))
    assert [row["size"] for row in rows(run)] == [[32, 32], [32, 48]]
    assert (run / REPORT).read_text().count('aria-labelledby="exported"') == 1
    assert (run / REPORT).read_text().count('href="#exported"') == 1


def test_a_file_that_failed_is_shown_and_gives_way_to_one_that_passed(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(proof, "parity", lambda *_, **__: Parity(16, 0.5, 3))
        assert softless.export(run, "pt2", tmp_path / "files").exit_code == 1
    page = (run / REPORT).read_text()
    assert "model.pt2.failed must not be used: its answers to" in page
    assert '<span class="wrong">failed</span>' in page
    assert softless.export(run, "pt2", tmp_path / "files", overwrite=True).ok
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["model.pt2"]
    assert [row["ok"] for row in rows(run)] == [True]
    assert "must not be used" not in (run / REPORT).read_text()


def test_files_of_earlier_weights_do_not_count(run, tmp_path):
    softless.export(run, "pt2", tmp_path / "files")
    record = read_run(run)
    assert len(record.exports) == 1
    other = replace(record, best={**record.best, "weights_sha256": "0" * 64})
    assert other.exports == []
    assert EXPORTS in FILES, "a run that is trained anew deletes them"


def test_a_folder_that_refuses_is_said_and_the_file_is_whole(run, tmp_path, monkeypatch, caplog):
    def refuse(path, text, **_):
        raise softless.errors.StorageError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr("softless.exporting.noted.write_text", refuse)
    with caplog.at_level(logging.WARNING):
        assert softless.export(run, "pt2", tmp_path / "files").ok
    assert "are whole, and the run's folder does not say so: cannot write" in caplog.text
    assert not (run / EXPORTS).exists()


def test_a_page_of_another_layout_stays(run, tmp_path, caplog):
    (run / REPORT).write_text("<p>mine</p>")
    with caplog.at_level(logging.WARNING):
        softless.export(run, "pt2", tmp_path / "files")
    assert (run / REPORT).read_text() == "<p>mine</p>"
    assert "has no place for exported files" in caplog.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "line 1 of .* is damaged: it is not JSON"),
        ('{"format": 3}', "format is 3 and should be a text"),
        ("[]", "it holds a list in place of a table"),
    ],
)
def test_a_damaged_file_is_one_sentence(run, damage, said):
    (run / EXPORTS).write_text(damage + "\n")
    with pytest.raises(DataError, match=said):
        write([run], run / REPORT)


def test_names_cannot_become_markup(run, tmp_path):
    softless.export(run, "pt2", tmp_path / "files")
    row = rows(run)[0] | {"why": "<script>", "notes": ['"><img src=x>'], "int8": "<b>"}
    (run / EXPORTS).write_text(json.dumps(row) + "\n")
    write([run], run / REPORT)
    page = (run / REPORT).read_text()
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|<img src=x|<b>", page)


def test_bench_pages_name_the_model_of_each_file(run, tmp_path):
    other = write_run(tmp_path / "softmax", "softmax")
    softless.export(run, "pt2", tmp_path / "files")
    write([run, other], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    section = page.split('<section aria-labelledby="exported">')[1].split("</section>")[0]
    assert '<span class="swatch s0"></span>SimA' in section
