"""docs/images/jupyter.png: the cells of docs/jupyter.md, run in a kernel and drawn by a browser. Needs chromium.

    python docs/update_jupyter.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image, ImageChops

DOCS = Path(__file__).resolve().parent


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium or google-chrome on the PATH; install one of them")
    cells = re.findall(r"```python\n(.*?)```", (DOCS / "jupyter.md").read_text("utf-8").partition("\n## ")[0], re.DOTALL)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
        page, drawn = Path(folder, "page.html"), Path(folder, "page.png")
        page.write_text(HTMLExporter(theme="dark").from_notebook_node(notebook)[0], "utf-8")
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        "--window-size=900,2000", f"--user-data-dir={folder}/profile", f"--screenshot={drawn}",
                        page.as_uri()], check=True, capture_output=True, timeout=120)
        picture = Image.open(drawn).convert("RGB")
    empty = Image.new("RGB", picture.size, picture.getpixel((picture.width - 1, picture.height - 1)))
    bottom = ImageChops.difference(picture, empty).getbbox()[3]
    picture.crop((0, 0, picture.width, bottom + 10)).quantize(128).save(DOCS / "images" / "jupyter.png", optimize=True)


if __name__ == "__main__":
    main()
