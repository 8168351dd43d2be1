"""The page in a real browser: what is dropped, pressed and seen, at a desk and on a phone, light and
dark.

SOFTLESS_BROWSER=required makes a missing browser an error.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softless.serving.server import Server
from tests.serving.browser import Browser, browser_path, browsing
from tests.serving.served import picture, port_of, serving

HERE = Path(__file__).parent
# what a reader's eye and a screen reader need, by the rules of WCAG 2.1 AA
CONTRAST = (HERE / "contrast.js").read_text(encoding="utf-8")
NAMES = (HERE / "names.js").read_text(encoding="utf-8")
VIEWS = [(1200, False), (1200, True), (380, False), (380, True)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if browser_path() is None:
        assert os.environ.get("SOFTLESS_BROWSER") != "required", "no chromium is installed here"
        pytest.skip("no chromium here: apt-get install chromium")
    with browsing(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def server(digits: Path, twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    slide = tmp_path_factory.mktemp("slides") / "a large image.png"
    slide.write_bytes(picture(size=(1500, 1100)))
    with serving(digits, twin=twin, slide=[slide], docs=True) as started:
        yield started


def check_page(browser: Browser, width: int) -> None:
    """Nothing that a rule of accessibility, or a narrow screen, finds."""
    contrast = browser.run(CONTRAST)
    assert contrast["seen"] > 10
    assert contrast["bad"] == []
    assert browser.run(NAMES) == []
    assert browser.run("document.documentElement.scrollWidth") <= width


def home(browser: Browser, server: Server, path: str = "/") -> None:
    browser.events.clear()
    browser.open(f"http://127.0.0.1:{port_of(server)}{path}")


LOOKED = "document.querySelector('.looked')"


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_a_test_image_is_taken(browser: Browser, server: Server, width: int, dark: bool):
    browser.look(width=width, dark=dark)
    home(browser, server)
    check_page(browser, width)
    browser.run("document.querySelectorAll('#samples button')[1].click()")
    browser.until(LOOKED)
    check_page(browser, width)
    assert browser.run("document.querySelectorAll('.pictures img').length") == 4
    pictures = "[...document.querySelectorAll('.pictures img')]"
    browser.until(f"{pictures}.every((image) => image.complete && image.naturalWidth)")
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(17, 19, 23)" if dark else "rgb(247, 246, 242)")
    assert browser.complaints() == []


def test_a_file_is_chosen_and_another_refused(browser: Browser, server: Server, tmp_path: Path):
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / "1.png").write_bytes(b"no image")
    browser.look()
    home(browser, server)
    browser.choose("input[type=file]", tmp_path / "0.png")
    browser.until(LOOKED)
    assert "40 x 48 pixels" in browser.run("document.getElementById('answer').innerText")
    browser.choose("input[type=file]", tmp_path / "1.png")
    browser.until("document.querySelector('#answer .warning')")
    assert "give JPEG, PNG or WebP" in browser.run("document.getElementById('answer').innerText")


def test_an_image_is_dropped(browser: Browser, server: Server):
    browser.look()
    home(browser, server)
    browser.run("""
      new Promise((done) => {
        const canvas = document.createElement("canvas"); canvas.width = canvas.height = 50;
        canvas.toBlob((blob) => {
          const transfer = new DataTransfer(); transfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
          document.getElementById("drop").dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer })); done();
        });
      })
    """)
    browser.until(LOOKED)
    assert "50 x 50 pixels" in browser.run("document.getElementById('answer').innerText")


def test_the_keyboard_is_enough(browser: Browser, server: Server):
    browser.look()
    home(browser, server)
    order: list[Any] = []
    for _ in range(4):
        browser.press("Tab", 9)
        order.append(browser.run("document.activeElement.name || document.activeElement.tagName"))
    assert order[:3] == ["image", "sample", "sample"]
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    browser.press("Enter", 13)
    browser.until(LOOKED)
    browser.run("document.querySelector('.zoom input').focus()")
    browser.press("Space", 32)
    browser.until("getComputedStyle(document.querySelector('.zoom img')).position === 'fixed'")


def test_no_other_host_is_asked(browser: Browser, server: Server):
    browser.look()
    home(browser, server)
    browser.run("document.querySelectorAll('#samples button')[0].click()")
    browser.until(LOOKED)
    addresses = browser.requested()
    own = f"http://127.0.0.1:{port_of(server)}/"
    assert len(addresses) > 4
    assert [address for address in addresses if not address.startswith((own, "data:"))] == []


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_a_slide_is_zoomed(browser: Browser, server: Server, width: int, dark: bool):
    browser.look(width=width, dark=dark)
    home(browser, server, "/slides/0")
    if browser.run("!document.querySelector('[name=map]')"):
        browser.run("document.querySelector('.options button').click()")
        browser.until("document.querySelector('[name=map]')")
    browser.until("document.querySelector('canvas').dataset.ready")
    check_page(browser, width)
    pixel = "[...document.querySelector('canvas').getContext('2d').getImageData(%s, %s, 1, 1).data]"
    middle = pixel % ("canvas.width / 2 | 0", "canvas.height / 2 | 0")
    sum_of = f"(() => {{ const canvas = document.querySelector('canvas'); return {middle}; }})()"
    browser.until(f"{sum_of}[3] === 255")
    before = browser.run("document.querySelector('.place').textContent")
    browser.run("document.querySelector('canvas').focus()")
    browser.press("+", 187)
    browser.until(f"document.querySelector('.place').textContent !== '{before}'")
    browser.press("0", 48)
    browser.until(f"document.querySelector('.place').textContent === '{before}'")
    browser.run("document.querySelector('[data-do=in]').click()")
    browser.until(f"document.querySelector('.place').textContent !== '{before}'")
    assert browser.complaints() == []


def test_routes_are_told_within_the_page(browser: Browser, server: Server):
    browser.look(width=380)
    home(browser, server, "/docs")
    check_page(browser, 380)
    assert "POST /predict" in browser.run("document.body.innerText")
    own = f"http://127.0.0.1:{port_of(server)}/"
    assert all(address.startswith((own, "data:")) for address in browser.requested())


def test_without_scripts_the_forms_work(browser: Browser, server: Server):
    browser.look()
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        home(browser, server)
        assert browser.run("document.documentElement.className") == ""
        browser.run("document.querySelectorAll('#samples button')[2].click()")
        browser.until(f"location.pathname === '/look' && {LOOKED}")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
