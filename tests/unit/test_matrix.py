"""The matrix of runtimes, precisions and boards: real runs, symmetric, and a cell that fails stays with its reason."""

import json

import pytest

from edgepipe import matrix
from edgepipe.progress import Silent
from tests.unit import formats_kit as kit


@pytest.fixture(scope="module")
def found():
    kit.use_home()
    request = matrix.Request(str(kit.tiny().folder), ("onnx", "openvino"), ("none", "int8"), ("local",))
    return matrix.measure(request, Silent())


def test_every_cell_ran_here_and_on_the_board(found):
    places = [(cell.format, cell.recipe, cell.board) for cell in found.cells]
    assert places[:3] == [("onnx", "none", "this host"), ("onnx", "none", "local"), ("onnx", "int8", "this host")]
    assert len(places) == 8
    assert "samples of evaluation" in found.inputs
    for cell in found.cells:
        assert cell.reason == ""
        assert cell.cosine > 0.99
        assert 0 <= cell.disagreement <= 1
    assert found.cells[0].max_abs < 1e-4 < found.cells[2].max_abs


def test_disagreement_is_symmetric_and_nothing_disagrees_with_itself(found):
    table = found.disagreement
    assert all(table[at][at] == 0 for at in range(len(table)))
    assert all(table[a][b] == table[b][a] for a in range(len(table)) for b in range(a))
    assert table[0][1] == 0, "the same float file by the same runtime, here and in the agent's child"


def test_a_cell_that_fails_says_why(monkeypatch):
    kit.use_home()
    from edgepipe import runner
    from edgepipe.errors import BoardError

    def broken(*_args, **_kwargs):
        raise BoardError("the runtime crashed", "here")

    request = matrix.Request(str(kit.tiny().folder), ("onnx",), ("none",))
    real = runner.run_file
    monkeypatch.setattr(runner, "run_file", lambda *a, **k: real(*a, **k) if k.get("optimize") is False else broken())
    found = matrix.measure(request, Silent())
    assert found.cells[0].reason == "the runtime crashed"
    assert found.cells[0].cosine is None
    assert found.disagreement == [[None]]
    json.dumps(found.document(), allow_nan=False)


def test_a_file_and_a_matrix_exclude_each_other(capsys, monkeypatch):
    from edgepipe.cli import main

    for arguments in (["--against", "tiny"], ["x.onnx", "--matrix", "--against", "tiny"]):
        monkeypatch.setattr("sys.argv", ["edgepipe", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "--matrix" in capsys.readouterr().err
