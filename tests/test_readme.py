"""Code of the README and of the documentation runs, and links and tables are valid."""

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path):
    """The Python blocks of a page, including those in lists."""
    text = path.read_text("utf-8")
    found = re.findall(r"^( *)```python\n(.*?)^\1```", text, flags=re.M | re.S)
    return [textwrap.dedent(block) for _, block in found]


def test_imports_of_all_pages_work():
    lines = {
        ast.unparse(node)
        for path in PAGES
        for block in blocks(path)
        for node in ast.parse(block).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and not re.search("dask_jobqueue|distributed", ast.unparse(node))
    }
    assert len(lines) > 8
    for line in lines:
        exec(line, {})


def test_links_to_files_are_valid():
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README.read_text("utf-8"))
    assert len(links) > 10
    files = [link.split("#")[0] for link in links]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_blocks_of_the_readme_run_in_order():
    names = {}
    torch.manual_seed(0)
    for block in blocks(README):
        exec(block.replace("10_000", "300"), names)
    assert names["samples"].shape == (1_000, 2)
    assert len(names["inference"].hybrid_summary.runs) == 2
    assert names["ranks"].shape == (100, 2)
    assert names["tree"]["posterior"].sizes["draw"] > 0
    pyplot.close("all")


def test_tables_agree_with_the_records(tables):
    assert str(tables.main_table()) in README.read_text("utf-8")
    page = ROOT / "docs" / "results" / "hybrid.md"
    made = (tables.main_table(full=True), tables.useless_table(), tables.parts_table())
    text = page.read_text("utf-8")
    assert [str(table) for table in made if str(table) not in text] == []
    text = (ROOT / "docs" / "results" / "speed.md").read_text("utf-8")
    assert str(tables.versions_table()) in text


def test_figures_of_the_papers_agree_with_the_page(tables):
    text = (ROOT / "docs" / "results" / "papers.md").read_text("utf-8")
    missing = [str(each) for each in tables.papers_tables() if str(each) not in text]
    assert missing == []


@pytest.fixture
def tables():
    path = ROOT / "benchmarks" / "table.py"
    spec = importlib.util.spec_from_file_location("table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
