"""Runs the notebooks as Jupyter does and stores what they show: ``make notebooks``, no part of the package.

What goes to stderr is left out: progress bars of loading and warnings that depend on the machine.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"


def execute(path: Path) -> None:
    """Run a notebook in its own folder, and store it with its outputs; one that fails stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    # The version of Python is the machine's.
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def main(names: Sequence[str]) -> None:
    """Run the notebooks of these names, or all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            print(path, flush=True)
            execute(path)


if __name__ == "__main__":
    main(sys.argv[1:])
