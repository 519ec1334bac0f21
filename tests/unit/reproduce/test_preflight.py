"""What a person gets wrong is told before the first stage, and before a server starts."""

import socket
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY, Run, write_params
from ruamel.yaml import YAML
from ruamel.yaml.scanner import ScannerError

from pipelines.release import package
from pipelines.reproduce.inspect import show_params, show_recipes
from pipelines.reproduce.preflight import check
from pipelines.reproduce.repro import open_recipe
from pipelines.tracking.recorded import where_is_the_run
from pipelines.tracking.ui import open_ui
from pipelines.workspace import Workspace
from storage.errors import ParamsError


def opened(folder: Path, **sections: object) -> Workspace:
    write_params(folder, {**TINY, **sections})
    return Workspace.open(folder)


@pytest.mark.parametrize(
    "lake", ["{url: s3://bucket/x}", "{zones: {shards: s3://bucket/x}}", "\n  zones: {raw: memory://x}"]
)
def test_a_colon_that_dvc_cannot_read(tmp_path: Path, lake: str) -> None:
    text = yaml.safe_dump(TINY).replace("lake: {}", f"lake: {lake}")
    (tmp_path / "params.yaml").write_text(text)
    ws = Workspace.open(tmp_path)  # YAML 1.2 knows what is meant
    with pytest.raises(ScannerError, match=r"found unexpected ':'"):
        YAML(typ="safe").load(text)  # as DVC reads it
    with pytest.raises(ParamsError, match=r"params.yaml, line \d+: DVC cannot read (s3|memory)://.* line of its own"):
        check(ws)


@pytest.mark.parametrize("lake", ["{url: 's3://bucket/x'}", "\n  url: s3://bucket/x", "{zones: {raw: /a}}"])
def test_colons_that_dvc_can_read(tmp_path: Path, lake: str) -> None:
    text = yaml.safe_dump(TINY).replace("lake: {}", f"lake: {lake}")
    (tmp_path / "params.yaml").write_text(text)
    YAML(typ="safe").load(text)
    check(Workspace.open(tmp_path))


@pytest.mark.parametrize(("name", "read"), [("it%27s", '"\'"'), ("a%20b", "' '"), ("100%ab", "")])
def test_a_folder_that_mlflow_would_decode_is_refused_before_anything_runs(
    tmp_path: Path, name: str, read: str
) -> None:
    """Found by the package stage at the end, it would be MLflow's traceback about a file that is there."""
    (tmp_path / name / "below").mkdir(parents=True)
    ws = opened(tmp_path / name / "below")
    for refuses in (check, package):
        with pytest.raises(ParamsError, match=rf"{name}: MLflow takes '%\w\w' .*{read}.*Rename that folder"):
            refuses(ws)
    assert not (ws.root / "data").exists()


@pytest.mark.parametrize("name", ["a b", "it's", "50%", "50% of", "a#b", "é&=;+"])
def test_a_folder_that_mlflow_reads_is_not_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    check(opened(tmp_path / name))


def test_own_code_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"model.name='my_modle:Net': no module 'my_modle' in .*my_modle.py beside"):
        check(opened(tmp_path, model={"name": "my_modle:Net"}))
    with pytest.raises(ParamsError, match=r"evaluate.metrics='my_modle:F': no module"):
        check(opened(tmp_path, evaluate={"metrics": ["MulticlassAUROC", {"name": "my_modle:F"}]}))
    (tmp_path / "my_modle.py").write_text("raise SystemError('it was imported')")
    check(opened(tmp_path, model={"name": "my_modle:Net"}))
    check(opened(tmp_path, model={"name": "torchmetrics.classification:Net"}))  # an installed one


@pytest.mark.parametrize("name", ["data.model.net:Net", "net:Net"])
def test_own_code_below_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "data" / "model").mkdir(parents=True)
    (tmp_path / "data" / "model" / "net.py").write_text("")
    (tmp_path / "net.py").write_text("from data.model.net import Net\n")
    with pytest.raises(ParamsError, match=r"your own code: .*data/model/net.py lies in .*move the code beside params"):
        check(opened(tmp_path, model={"name": name}))


def gated(metric: str, **more: object) -> dict[str, object]:
    return {"promote": {"gate": {"metric": metric, **more}}}


CSV = {"ingest": {"sources": ["data/*.csv"]}, "curate": {"label": "y"}}
VALUES = {"ingest": {"sources": ["data/*.csv"]}, "curate": {"label": "y", "target": "value"}}
ANY = {"ingest": {"sources": ["data/"]}}
DOMAINS = {"ingest": {"sources": {"code": ["a/*.py"], "prose": ["b/*.txt"]}}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (gated("bits_per_bite", mode="min"), r"promote.gate.metric='bits_per_bite': .* Did you mean 'bits_per_byte'\?"),
        (gated("accuracy"), r"no such figure\. Known here: bits_per_byte, loss, perplexity, documents, bytes\.$"),
        (
            gated("loss", mode="min", baseline="baseline.bigramm.bits_per_byte"),
            r"gate.baseline=.*'baseline.bigram.bits",
        ),
        (CSV | gated("rmse", mode="min"), r"'rmse': evaluate measures no such figure"),
        (VALUES | gated("accuracy"), r"'accuracy': evaluate measures no such figure"),
        (ANY | gated("acuracy"), r"Did you mean 'accuracy'\?"),
        (DOMAINS | gated("domains.cod.bits_per_byte", mode="min"), r"Did you mean 'domains.code.bits_per_byte'\?"),
        (CSV | gated("multiclass_auroc"), r"'multiclass_auroc': evaluate measures no such figure"),
        (VALUES | gated("rmse"), r"promote.gate.mode=max: of rmse more is worse. Set it to min"),
        (CSV | gated("accuracy", mode="min"), r"promote.gate.mode=min: of accuracy less is worse. Set it to max"),
        ({"evaluate": {"metrics": ["MulticlasAUROC"]}}, r"torchmetrics has no 'MulticlasAUROC'. Did you mean 'Multic"),
        ({"curate": {"split": {"train": 0.9, "val": 0.1, "test": 0}}}, r"evaluate.split=test, but curate.split.test=0"),
        ({"curate": {"split": {"train": 0, "val": 0.5, "test": 0.5}}}, r"curate.split.train=0: .* nothing to learn"),
        (
            {"curate": {"split": {"train": 0.9, "val": 0, "test": 0.1}}, "train": {"steps": 1, "patience": 2}},
            r"train.patience=2 needs a val split, but curate.split.val=0",
        ),
        (
            {
                "curate": {"split": {"train": 0.9, "val": 0, "test": 0.1}},
                "train": {"steps": 1, "checkpoints": {"keep_best": 1}},
            },
            r"train.checkpoints.keep_best=1 needs a val split",
        ),
    ],
)
def test_what_later_stages_would_ask_for_in_vain_is_told_first(
    tmp_path: Path, sections: dict[str, object], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        check(opened(tmp_path, **sections))


def test_a_job_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both by `shardline repro` and by a flow, which open a recipe so."""
    (tmp_path / ".dvc").mkdir()
    opened(tmp_path, **gated("bits_per_bite", mode="min"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"promote.gate.metric='bits_per_bite'"):
        open_recipe(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".dvc", "params.yaml"]


@pytest.mark.parametrize(
    "sections",
    [
        gated("bits_per_byte", mode="min", baseline="baseline.xz.bits_per_byte_by_file"),
        CSV | gated("f1.malignant"),
        CSV | gated("multiclass_auroc") | {"evaluate": {"metrics": ["MulticlassAUROC"]}},
        CSV | gated("by_class.b") | {"evaluate": {"metrics": [{"name": "F1Score", "key": "by_class"}]}},
        VALUES | gated("r2", baseline="baseline.mean.r2"),
        ANY | gated("rmse", mode="min"),
        ANY | gated("accuracy"),
        DOMAINS | gated("domains.prose.bits_per_byte", mode="min"),
    ],
)
def test_what_will_be_measured_passes(tmp_path: Path, sections: dict[str, object]) -> None:
    check(opened(tmp_path, **sections))


def test_nothing_heavy_is_imported_to_tell(tmp_path: Path, run: Run) -> None:
    opened(tmp_path, **CSV, **gated("multiclass_auroc"), evaluate={"metrics": ["MulticlassAUROC"]})
    code = (
        "import sys; from pipelines.reproduce.preflight import check; from pipelines.workspace import Workspace\n"
        "check(Workspace.open()); assert not {'torch', 'torchmetrics', 'mlflow'} & set(sys.modules)"
    )
    run(sys.executable, "-c", code, cwd=tmp_path)


def test_a_project_without_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"is no DVC project. Change to the folder"):
        open_recipe(None)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ParamsError, match=r"has no dvc.yaml.*Copy it from"):
        open_recipe(None)
    with pytest.raises(ParamsError, match=r"No recipe 'python_ln': .* Did you mean 'python_lm'\?"):
        open_recipe("python_ln")


def test_looking_where_no_project_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"No recipes: .*Change to the folder"):
        show_recipes()
    with pytest.raises(ParamsError, match=r"No runs: .*Change to the folder"):
        open_ui("127.0.0.1", 5000)
    assert not [*tmp_path.iterdir()]


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ParamsError, match=rf"port {port}: Address already in use.*--port"):
            open_ui("127.0.0.1", port)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lr", r"'lr'. Did you mean train.lr\?"),
        ("train.lrr", r"Did you mean 'train.lr'\?"),
        ("nonsense", r"'nonsense'. Known here: recipe, seed, lake, ingest, .{,99}, cache\.$"),
    ],
)
def test_parameters_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        show_params(name)


def test_the_summary_says_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links lead only to runs that exist: tests/integration/test_tracking.py has one that does."""
    ws = opened(tmp_path)
    assert where_is_the_run(ws) == "not tracked"
    ws.model.mkdir(parents=True)
    (ws.model / "run.json").write_text('{"run_id": null}')  # MLflow was away
    assert where_is_the_run(ws) == "not tracked"
    (ws.model / "run.json").write_text('{"run_id": "r1"}')
    assert where_is_the_run(ws).startswith(f"r1, which is not in {ws.tracking_uri}: it was made elsewhere")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:1/")
    assert where_is_the_run(Workspace.open(tmp_path)) == (
        "r1; http://127.0.0.1:1/ does not answer, so it cannot be looked up"
    )
