"""The documents: their Python runs and gives the shapes that its comments tell, and their links and files are there.

A block of Python runs after those above it in the same document; of ```` ```python no-run ```` only the imports do.
"""

import ast
import importlib.util
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from examples import tiles

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")))
BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHAPE = re.compile(r"# (\[\d+(?:, \d+)*\])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`([a-z0-9_./*]+\.(?:py|h|cu|cpp|md|txt))`")
MODULE = re.compile(r"`(maskfeat(?:_kernels)?(?:\.[a-z_]+)+)`")
SOURCES = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.*")]
SOURCES += [
    path.relative_to(ROOT).as_posix()
    for folder in ("csrc", "maskfeat_kernels", "maskfeat", "benchmarks", "examples", "tests", "docs")
    for path in (ROOT / folder).rglob("*.*")
]
ids = {"ids": lambda path: path.relative_to(ROOT).as_posix()}


def python_blocks(text: str) -> list[str]:
    blocks = [(info, code) for language, info, code in BLOCK.findall(text) if language == "python"]
    return [imports(code) if "no-run" in info else code for info, code in blocks]


def imports(code: str) -> str:
    found = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return ast.unparse(ast.Module(found, []))


def run(code: str, names: dict) -> list[str]:
    """Run a block in ``names``, statement by statement; where a comment beside a result tells another shape."""
    wrong, lines = [], code.splitlines()
    for statement in ast.parse(code).body:
        told = SHAPE.search(lines[statement.end_lineno - 1])
        if told and isinstance(statement, (ast.Expr, ast.Assign)):
            value = eval(compile(ast.Expression(statement.value), "block", "eval"), names)
            shape = list(getattr(value, "shape", value))
            wrong += [] if str(shape) == told[1] else [f"{ast.unparse(statement)} is {shape}, not {told[1]}"]
            if isinstance(statement, ast.Assign):
                names[statement.targets[0].id] = value
        else:
            exec(compile(ast.Module([statement], []), "block", "exec"), names)
    return wrong


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Links to files that are not there, or to headings that a document does not have; none is followed to the net."""
    broken = []
    for link in LINK.findall(BLOCK.sub("", text)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(text if target == path else target.read_text())):
            broken.append(link)
    return broken


def missing_sources(text: str) -> list[str]:
    """Files of ours that a document names, by path or by the end of one, and modules, that are nowhere."""
    files = [name for name in SOURCE.findall(text) if not any(fnmatch(f"/{path}", f"*/{name}") for path in SOURCES)]
    return files + [name for name in MODULE.findall(text) if not is_module(name)]


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_blocks(path.read_text())], **ids)
def test_python_in_documents(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # for what they write
    names: dict = {}
    assert [wrong for code in python_blocks(path.read_text()) for wrong in run(code, names)] == []


@pytest.mark.parametrize("path", DOCUMENTS, **ids)
def test_links_and_files_in_documents(path):
    text = path.read_text()
    assert broken_links(path, text) == []
    assert missing_sources(text) == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "```" in path.read_text()], **ids)
def test_code_blocks_on_the_site(path, monkeypatch):
    """Each fence is a block of code there. A site that does not know one swallows what follows it."""
    markdown = pytest.importorskip("markdown")
    pytest.importorskip("pymdownx.superfences")
    pytest.importorskip("latex2mathml.converter")
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    text = path.read_text()
    html = markdown.markdown(text, extensions=["pymdownx.superfences", "roles"])
    assert html.count('<div class="highlight">') >= len(BLOCK.findall(text))
    assert "```" not in html


def test_drawings_are_what_draws_them(tmp_path):
    tiles.main(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "docs/pictures" / path.name).read_text()


def test_another_shape_is_seen():
    code = "import torch\nx = torch.zeros(2, 3)  # [2, 3]: right\nx.T  # [2, 3]: wrong\n"
    assert run(code, {}) == ["x.T is [3, 2], not [2, 3]"]
    with pytest.raises(NameError):
        run("unknown\n", {})
    text = "```python no-run\nimport re\nunknown\n```\n```sh\nls\n```\n```python\n1\n```\n"
    assert python_blocks(text) == ["import re", "1\n"]


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, of it\n")
    text = "# Here\n[a](other.md) [b](other.md#a-heading-of-it) [c](#here) [d](https://nowhere.invalid/x)\n"
    (tmp_path / "this.md").write_text(text)
    assert broken_links(tmp_path / "this.md", text) == []
    text = "`tests/project/test_documents.py` `test_*.py` `nowhere.py` `tests/none.py` `hog_NAME.py` `python -m x.py`"
    text += " `maskfeat_kernels.layouts` `maskfeat_kernels.hog.none`"
    assert missing_sources(text) == ["nowhere.py", "tests/none.py", "maskfeat_kernels.hog.none"]
    wrong = "[a](none.md) [b](other.md#no-heading) [c](#nowhere) [d](docs/hog.jpg)\n"
    assert broken_links(tmp_path / "this.md", wrong) == ["none.md", "other.md#no-heading", "#nowhere", "docs/hog.jpg"]
