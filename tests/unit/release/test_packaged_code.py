"""What a packaged model needs installed, by what its own code imports."""

from pathlib import Path

from pipelines.release.build import imported_distributions
from pipelines.release.interface import requirements


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
