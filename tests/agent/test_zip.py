"""The agent's zip: sources without what only people read, and compiled once for each Python on a board."""

import ast
import shutil
from pathlib import Path

import pytest

from edgepipe import pack

SOURCES = sorted(Path(pack.__file__).parent.glob("agent/**/*.py"))


class Bared(ast.NodeTransformer):
    """A syntax tree with empty docstrings."""

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value, node.value.end_lineno, node.value.end_col_offset = "", 0, 0
            node.end_lineno = node.end_col_offset = 0
        return node


def tree(source: bytes) -> list[tuple]:
    """Every node with its line."""
    found = Bared().visit(ast.parse(source))
    return [(type(node).__name__, getattr(node, "lineno", 0), ast.dump(node)) for node in ast.walk(found)]


def test_the_code_on_a_board_is_that_of_the_sources_line_by_line():
    assert len(SOURCES) > 40
    for path in SOURCES:
        source = path.read_bytes()
        assert tree(pack.bare(source)) == tree(source), path
        assert b'"""' not in pack.bare(source)
    assert pack.bare(b'"""Doc\n\ndoc."""\nx = "# no"  # yes\n') == b'""\n\n\nx = "# no"\n'


@pytest.fixture
def placed(tmp_path, pyz, start):
    """Start the agent from a folder of its own, by default as its first start there left it."""
    folder = tmp_path / "agent"
    folder.mkdir()
    archive = shutil.copy(pyz, folder)

    def begin():
        agent = start(pyz=archive)
        assert agent.good("hello", owner="a@b")["agent"] == pyz.stem
        return folder

    (folder / "old.pyz.cpython-38.code").write_bytes(b"of another Python")
    begin()
    (code,) = folder.glob(f"{pyz.name}.*.code")
    return begin, folder, code


def test_code_is_kept_beside_the_zip_in_place_of_that_of_older_agents(placed):
    begin, folder, code = placed
    before = code.stat()
    assert (folder / "old.pyz.cpython-38.code").exists()
    ending = code.name[code.name.index(".pyz") :]
    older = folder / f"{'0' * 64}{ending}"
    older.write_bytes(b"of an older agent")
    begin()
    assert code.stat().st_mtime_ns == before.st_mtime_ns  # it was taken, and nothing was made
    code.unlink()
    begin()
    assert code.stat().st_size == before.st_size and not older.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"?" + data[100:]]
)
def test_code_that_is_torn_is_made_anew(placed, damage):
    begin, _, code = placed
    whole = code.read_bytes()
    code.write_bytes(damage(whole))
    begin()
    assert len(code.read_bytes()) == len(whole)


def test_without_a_place_for_it_the_agent_runs_all_the_same(placed):
    begin, folder, code = placed
    code.unlink()
    code.mkdir()  # root may write anywhere else
    begin()
    assert code.is_dir() and sorted(path.suffix for path in folder.iterdir()) == [".code", ".code", ".pyz"]


def test_children_come_from_it_too(placed, start, tools):
    _, folder, code = placed
    agent = start(pyz=next(folder.glob("*.pyz")))
    manifest, content = tools.null(sleep=0.001)
    agent.push(content)
    assert agent.bench(manifest)["runtime"] == "null"
    assert code.exists()
