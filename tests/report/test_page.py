"""The page as a browser and a screen reader get it."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from softless.errors import UsageError
from softless.tasks.page import write
from tests.report.folders import write_run


class Reader(HTMLParser):
    """Elements with their attributes; complains where a tag is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_nothing_is_requested_and_nothing_runs(page, read):
    words = re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", words)
    assert not {"script", "iframe", "object", "link", "base", "form"} & {
        tag for tag, _ in read.found
    }
    assert all(image["src"].startswith("data:image/png;base64,") for image in read.all("img"))
    assert any("default-src 'none'" in meta.get("content", "") for meta in read.all("meta"))


def test_every_picture_has_words(read):
    ids = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    svgs = read.all("svg")
    assert len(svgs) >= 6  # three curves, two accuracies, one difference
    assert all(svg["role"] == "img" and svg["aria-labelledby"] in ids for svg in svgs)
    assert all(len(image["alt"]) > 10 for image in read.all("img"))
    assert all(section["aria-labelledby"] in ids for section in read.all("section"))
    assert all(
        link["href"][1:] in ids for link in read.all("a") if not link["href"].startswith("data:")
    )


def test_pictures_are_readable_and_small(read):
    images = read.all("img")
    assert len(images) == 12 * (1 + 2 * 2)  # original, query and key map of two models
    for image in images:
        shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert max(shown.size) <= 144


def test_fits_a_phone(page):
    assert 'content="width=device-width, initial-scale=1"' in page
    assert "prefers-color-scheme: dark" in page
    assert re.search(
        r"\.scroll \{[^}]*overflow-x: auto[^}]*no-repeat local[^}]*no-repeat scroll", page
    ), "a shadow where a table goes on"
    assert not re.search(r"(?<!max-)(?<!min-)\bwidth: ?\d{3,}px", page)


def test_the_same_runs_give_the_same_page(runs, speeds, page, tmp_path):
    assert write(runs, tmp_path / "again.html", speeds=speeds).read_text(encoding="utf-8") == page


def test_names_cannot_become_markup(tmp_path):
    folder = write_run(
        tmp_path / "run",
        classes=["<script>alert(1)</script>", "a&b", '"><img src=x onerror=1>', *"3456789"],
    )
    out = write([folder], tmp_path / "report.html", title="<b>bold</b>")
    read = Reader(out.read_text(encoding="utf-8"))
    assert not read.all("script")
    assert not read.all("b")
    assert all("onerror" not in attributes for _, attributes in read.found)
    assert "<script>alert(1)</script>" in "".join(read.text)


def test_one_run_has_no_comparison(tmp_path):
    out = write([write_run(tmp_path / "run")], tmp_path / "report.html")
    text = "".join(Reader(out.read_text(encoding="utf-8")).text)
    assert "What differs" not in text
    assert "Wilson, 360 images" in out.read_text(encoding="utf-8")
    assert "paired" not in text


def test_data_that_have_gone_are_said(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    recipe = folder / "recipe.json"
    text = recipe.read_text().replace(
        '"source": "digits", "path": null', '"source": "folder", "path": "/no/such/folder"'
    )
    recipe.write_text(text)
    page = write([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The test images cannot be shown: " in page
    assert "no data folder at folder" in page
    assert "/no/such" not in page, "a page is passed on and tells nobody where files lay"
    assert "<img" not in page


def test_without_a_test_split_validation_is_called_validation(tmp_path):
    page = write([write_run(tmp_path / "run", test=False)], tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert "validation accuracy: no test split" in page
    assert "There is no test split" in page


def test_unfinished_and_missing_runs_are_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "result.json").unlink()
    with pytest.raises(UsageError, match=r"result\.json is missing.*--resume"):
        write([folder], tmp_path / "report.html")
    with pytest.raises(UsageError, match="no run folder"):
        write([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UsageError, match="at least one"):
        write([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_three_models_are_a_list_of_words(tmp_path):
    runs = [write_run(tmp_path / op, op) for op in ("sima", "xca", "softmax")]
    for count, title in (
        (1, "SimA on digits, run sima"),
        (2, "SimA and XCA on digits"),
        (3, "SimA, XCA and softmax on digits"),
    ):
        assert f"<h1>{title}</h1>" in write(runs[:count], tmp_path / "report.html").read_text(
            encoding="utf-8"
        )


def test_many_models_are_listed_one_below_the_other(tmp_path):
    """Six models: a line each in the result and in the costs, on one axis, with a colour of its
    own, and no claim beyond the intervals.
    """
    shares = {
        "sima": 0.97,
        "xca": 0.97,
        "sima_l2": 0.40,
        "sima_none": 0.97,
        "efficient": 0.97,
        "softmax": 0.96,
    }
    runs = [write_run(tmp_path / op, op, accuracy=share) for op, share in shares.items()]
    text = write(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    read = Reader(text)
    words = " ".join(" ".join(read.text).split())
    assert "6 models on digits" in words
    assert "(SimAL2) and " in words
    assert "SimAL2 is behind softmax." in words
    assert "interval of the others' difference to softmax contains zero: no winner there." in words
    assert "ahead" not in words.split("Means over")[0]
    strips = [one for one in read.all("svg") if one.get("class") == "strip"]
    assert len(strips) == len(shares)
    assert {one["class"] for one in read.all("span") if "swatch" in one.get("class", "")} == {
        f"swatch s{n}" for n in range(6)
    }
    listed = text.split('class="plain cost listed"')[1].split("</table>")[0]
    assert listed.count('scope="row"') == len(shares)
    assert "thin lines" not in words
