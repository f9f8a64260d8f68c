"""The notebook runs from top to bottom, and shows what its text says."""

from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "window_and_limit.ipynb"
CLAIMS = """
momentum = window["effective momentum"]
assert window["window"][190] == window["window"][-1] == 100
assert min(window["window"][200:400]) < 20 and momentum[345] < 0.3 * momentum[190]
assert ends[1e-3, 0.5] < ends[1e-3, None] + 0.05, ends
assert ends[1.0, None] > 1 and ends[0.1, None] > 1.2 * ends[0.1, 0.5], ends
assert max(ends[rate, 0.5] for rate in rates[1:]) < 0.2, ends
assert max(limited["step limit"]) < 0.1
"""


def test_it_runs_and_shows_what_it_says(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
