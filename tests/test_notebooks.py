"""The notebooks run, cell by cell, as their reader would run them."""

import json

import matplotlib
import pytest
from command import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    matplotlib.use("agg")
    notebook = json.loads(path.read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("epochs = 10", "epochs = 2")
            source = source.replace('get_config("1")', 'get_config("1,smoke")')
            exec(compile(source, f"{path.name}: {source.splitlines()[0]}", "exec"), names)
    assert "gain of" in capsys.readouterr().out
