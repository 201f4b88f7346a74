"""analysis/walkthrough.ipynb runs from the top, and is stored with what it shows."""

import pathlib

import nbformat
import pytest
import toy
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = nbformat.read(ROOT / "analysis" / "walkthrough.ipynb", as_version=4)
# A toy shows that every cell runs, not what it stands for. Its programs are those of other tests.
WORLD = {k.split(".")[-1]: v for k, v in toy.SMALL.items() if k.startswith("data.world.")}
FIELDS = {k: v for k, v in toy.SMALL.items() if not k.startswith("data.")} | toy.OWN["abxi"]
SHORT = {
    "EPOCHS, SEEDS = 24, 3": "EPOCHS, SEEDS = 3, 2",
    "World(redundancy=0.5)": f"World(redundancy=0.5, **{WORLD})",
    'gca=gca, seeds=SEEDS, train={"max_epochs": EPOCHS}': f"gca=gca, **{FIELDS | {'seeds': 2}}",
    "uni99": "uni10",
}


@pytest.mark.slow
def test_it_runs():
    notebook = NOTEBOOK.copy()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for long, short in SHORT.items():
        assert sum(long in cell.source for cell in cells) == 1
        for cell in cells:
            cell.source = cell.source.replace(long, short)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    shown = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


def test_it_is_stored_with_its_outputs_and_no_path_of_a_machine():
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    texts = [cell.source for cell in cells]
    for output in outputs:
        texts += [output.get("text", ""), str(output.get("data", {}).get("text/plain", ""))]
    folders = ("/tmp", "/home", "/root", "/Users", str(ROOT))
    assert not [text for text in texts if any(folder in text for folder in folders)]


def test_formulas_have_no_line_breaks():
    texts = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
    assert not [text for text in texts if "\\\\" in text]
