"""The files around the package say what is so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings tomli there
    import tomli as tomllib

from softless.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_licence():
    assert text("LICENSE").startswith("MIT License\n\nCopyright (c) 2026 The Softless authors\n")
    assert PROJECT["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_citation():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["type"] == "software"
    assert citation["authors"] == [{"name": "The Softless authors"}]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    papers = {reference["identifiers"][0]["value"] for reference in citation["references"]}
    assert papers >= {"arXiv:2206.08898", "arXiv:2110.11945", "arXiv:2106.09681"}


def test_citation_names_the_paper_of_every_operator():
    from softless.attention.registry import OPERATORS

    papers = set(re.findall(r"arXiv:\d{4}\.\d{5}", text("CITATION.cff")))
    operators = [operator for name, operator in OPERATORS.items() if name != "softmax"]
    named = {
        operator.name: set(re.findall(r"arXiv:\d{4}\.\d{5}", operator.paper))
        for operator in operators
    }
    assert {name: ids for name, ids in named.items() if not ids <= papers} == {}


def test_changelog():
    changelog = text("CHANGELOG.md")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.+)", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_security_says_what_a_reporter_needs():
    security = text("SECURITY.md")
    threats = [
        "Spoofing",
        "Tampering",
        "Repudiation",
        "Information disclosure",
        "Denial of service",
        "Elevation of privilege",
    ]
    for words in ["Supported versions", "private vulnerability report", "90 days", *threats]:
        assert words in security


def test_every_target_of_make_that_a_text_names_exists():
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / ".ci" / "run"]
    named = {
        (path.name, target)
        for path in texts
        for target in re.findall(r"(?:`|^|    )make (\w+)", path.read_text(), re.MULTILINE)
    }
    assert {(name, target) for name, target in named if target not in targets} == set()
    assert ("run", "test") in named


def links() -> list[tuple[str, str]]:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    found = (
        (path, link)
        for path in texts
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text())
    )
    return [(str(path.relative_to(ROOT)), link) for path, link in found]


def test_every_relative_link_leads_somewhere():
    assert [
        (path, link) for path, link in links() if not (ROOT / path).parent.joinpath(link).exists()
    ] == []


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name
)
def test_every_option_of_the_command_line_in_a_text_exists(path):
    verbs = set(re.findall(r"^\s*softless ([a-z]+)", path.read_text(), re.MULTILINE))
    if not verbs:
        return
    from softless.cli.main import VERBS

    assert verbs <= set(VERBS)


def missing_extras() -> dict[str, tuple[str, str]]:
    """Where the library reports an absent package: place -> (package, extra)."""
    found = {}
    for path in sorted((ROOT / "softless").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtra":
                package, extra = (
                    argument.value if isinstance(argument, ast.Constant) else ""
                    for argument in node.args
                )
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = (str(package), str(extra))
    return found


def test_every_missing_package_is_in_the_extra_that_the_message_names():
    extras = {
        name: " ".join(requirements)
        for name, requirements in PROJECT["optional-dependencies"].items()
    }
    found = {place: pair for place, pair in missing_extras().items() if all(pair)} | EXTRAS
    wrong = {place: pair for place, pair in found.items() if pair[0] not in extras.get(pair[1], "")}
    assert wrong == {}


def test_imports_point_down():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
