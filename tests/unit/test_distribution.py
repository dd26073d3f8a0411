"""What is installed without the checkout (``pip install .``) is all of the program."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("emb_model_provider", "supervisor", "shard", "router")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_folder_with_code_is_listed_as_a_package():
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert set(SETUPTOOLS["packages"]) == {".".join(folder.parts) for folder in folders}


def test_every_other_file_is_listed_as_data_of_its_package():
    others = {path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    others -= {path for path in others if path.suffix in (".py", ".pyc")}
    listed = {
        ROOT.joinpath(*name.split("."), file) for name, files in SETUPTOOLS["package-data"].items() for file in files
    }
    assert listed == others
