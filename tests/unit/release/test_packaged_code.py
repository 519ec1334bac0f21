"""What a packaged model needs installed, by what its own code imports; and how a package comes to its place."""

import tempfile
from pathlib import Path

import pytest
from support.training_samples import make_points

from pipelines.release.build import _copy_code, _fresh_folder, _put_in_place, imported_distributions
from pipelines.release.signature import requirements


def test_what_a_model_of_ones_own_imports_is_required_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("import json, torch\nfrom .block import Block\n")
    (tmp_path / "nets" / "block.py").write_text(
        "from pipelines.models import build_model\ndef late():\n    import PIL.Image\n    from sklearn import svm\n"
    )
    found = imported_distributions(tmp_path / "nets")
    assert set(found) == {"torch", "pillow", "scikit-learn"}
    assert any(line.startswith("scikit-learn==") for line in requirements(found))
    assert imported_distributions(tmp_path / "nets" / "__init__.py") == ["torch"]


def test_what_a_model_of_ones_own_imports_beside_it_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it would be found in the recipe's folder, on a server nowhere."""
    ws = make_points(tmp_path / "recipe")
    (ws.root / "model_of_mine.py").write_text("import json\nfrom layers_of_mine import Layer\n")
    (ws.root / "layers_of_mine.py").write_text(
        "import model_of_mine\nfrom blocks_of_mine.one import Block\nfrom torch import nn\n"
    )
    (ws.root / "blocks_of_mine").mkdir()
    (ws.root / "blocks_of_mine" / "one.py").write_text("from sklearn import svm\n")
    (ws.root / "unused.py").write_text("")
    monkeypatch.chdir(ws.root)
    needed = _copy_code(ws, "model_of_mine:Model", tmp_path / "code")
    assert needed == ["scikit-learn", "torch"]
    copied = {path.relative_to(tmp_path / "code").as_posix() for path in (tmp_path / "code").rglob("*_of_mine*")}
    assert copied == {"model_of_mine.py", "layers_of_mine.py", "blocks_of_mine"}
    assert (tmp_path / "code" / "blocks_of_mine" / "one.py").is_file()
    assert not (tmp_path / "code" / "unused.py").exists()


def test_a_package_comes_to_its_place_in_one_step_wherever_the_state_lies(tmp_path: Path) -> None:
    """Whose folder is linked to another file system, say."""
    ws = make_points(tmp_path / "recipe")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        ws.state.symlink_to(elsewhere)
        (ws.package.parent / ".package.killed").mkdir()
        for content in ("first", "second"):
            with _fresh_folder(ws) as folder:
                (folder / "MLmodel").write_text(content)
                _put_in_place(folder, ws.package)
            assert (ws.package / "MLmodel").read_text() == content
            assert not list(ws.package.parent.glob(".package.*"))
