"""What README and CONTRIBUTING say is true: code runs, quoted lines exist, links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "models.md"]
FENCE = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _fences(document):
    return [match.groups() for match in FENCE.finditer(document.read_text())]


def test_readme_code_runs():
    blocks = [code for language, path, code in _fences(DOCUMENTS[0]) if language == "python"]
    assert len(blocks) == 7
    namespace = {}
    for code in blocks:
        exec(code, namespace)
    assert namespace["logits"].shape == (1, 1000)
    assert namespace["probabilities"].shape == (1, 1000)
    assert namespace["output"].shape == (1, 64, 56, 56)
    assert namespace["branch"].multiplications == 12_443_648


def test_quoted_lines_exist():
    quotes = [(path, code) for _, path, code in _fences(DOCUMENTS[1]) if path]
    assert quotes
    for path, code in quotes:
        lines = {line.strip() for line in (ROOT / path).read_text().splitlines()}
        for line in code.splitlines():
            assert line.strip() in lines | {"", "..."}, f"{path} has no line: {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    text = FENCE.sub("", document.read_text())
    names = [document.parent / name for name in re.findall(r"\]\(([^)#:]+)\)", text)]
    quoted = re.findall(r"`([\w./-]+/[\w.-]+\.\w+)`", text)
    names += [ROOT / name for name in quoted if not name.startswith(".venv")]
    missing = [name for name in names if not name.exists()]
    assert not missing
