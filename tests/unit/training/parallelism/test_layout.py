"""Where ranks stand, and what a layout asks of a model."""

from functools import partial
from itertools import product

import pytest
import torch
from conftest import TINY
from torch import nn

from pipelines.models.architectures.transformer import Transformer
from pipelines.models.plans import units_of
from pipelines.params import Params
from pipelines.training.parallelism import DIMENSIONS, Layout
from pipelines.training.parallelism.parallelize import keep_stage, refine_units, share_products
from pipelines.training.process.device import Precision
from storage.errors import ParamsError


def params(batch: int = 8, **parallel: object) -> Params:
    train = TINY["train"] | {"ranks": 1, "parallel": {}}
    made = Params.model_validate(TINY | {"stream": {"batch_size": batch, "seq_len": 32}, "train": train})
    section = made.train.parallel.model_validate(parallel)
    return made.model_copy(update={"train": made.train.model_copy(update={"parallel": section})})


def test_ranks_fill_the_mesh_once_and_groups_read_the_same_samples() -> None:
    layouts = [Layout((2, 3, 2, 2), rank) for rank in range(24)]
    places = [tuple(layout.place(name) for name in DIMENSIONS) for layout in layouts]
    assert places == list(product(range(2), range(3), range(2), range(2)))
    for layout in layouts:
        peers = [one for one in layouts if one.data_rank == layout.data_rank]
        assert len(peers) == 4  # tensor × pipeline
        assert sum(one.owns_loss for one in peers) == 1
        assert {one.rng_stream for one in peers} == {2 * layout.data_rank, 2 * layout.data_rank + 1}
    assert {layout.data_rank for layout in layouts} == set(range(6)) == set(range(layouts[0].data_world))


def test_data_is_what_the_other_sizes_leave() -> None:
    assert Layout.of(params(), 4, 1).sizes == (1, 4, 1, 1)
    assert Layout.of(params(shard=2), 8, 1).sizes == (1, 4, 2, 1)
    assert Layout.of(params(tensor=2, pipeline=2, microbatches=2), 8, 1).sizes == (2, 2, 1, 2)


@pytest.mark.parametrize(
    ("ranks", "train", "said"),
    [
        (3, {"parallel": {"tensor": 2}}, "data 1 × shard 1 × tensor 2 × pipeline 1 = 2, but train.ranks = 3"),
        (4, {"parallel": {"data": 2, "shard": 3}}, "data 2 × shard 3 × tensor 1 × pipeline 1 = 6, but train.ranks = 4"),
        (4, {"parallel": {"pipeline": 4, "microbatches": 3}}, "microbatches 3 < pipeline 4"),
        (2, {"parallel": {"shard": 2}, "accumulate": 2}, None),
        (2, {"parallel": {"pipeline": 2}, "accumulate": 2}, "accumulate = 2 with parallel.pipeline = 2"),
        (2, {"parallel": {"microbatches": 2}}, "microbatches = 2, but pipeline = 1"),
        (2, {"parallel": {"offload": True}}, "offload = true, but shard = 1"),
        (2, {"parallel": {"zero": 4}}, "Input should be 1, 2 or 3"),
        (9, {}, "batches of 8 samples (stream.batch_size) for 9 × 1 ranks, so that some would never get one"),
        (16, {"parallel": {"tensor": 2}}, None),
        (18, {"parallel": {"tensor": 2}}, "for 9 × 2 ranks, so that some would never get one: lower train.ranks to 16"),
    ],
)
def test_sizes_are_checked_when_made(ranks: int, train: dict[str, object], said: str | None) -> None:
    values = TINY | {"train": {"steps": 1, "ranks": ranks, **train}}
    if said is None:
        Params.model_validate(values)
        return
    with pytest.raises(ValueError, match=r".") as caught:
        Params.model_validate(values)
    assert said in str(caught.value)


def test_every_rank_gets_a_sample_of_the_first_batches() -> None:
    values = TINY | {"train": {"steps": 9, "ranks": 4}, "stream": {"batch_size": 8, "batch_ramp": {0: 2, 5: 8}}}
    with pytest.raises(ValueError, match=r"batches of 2 samples \(stream.batch_ramp\) for 4 × 1 ranks"):
        Params.model_validate(values)


@pytest.mark.parametrize(
    ("compute", "parallel", "said"),
    [
        ({"nodes": 2}, {"shard": 8}, None),  # a model shared out over both machines
        ({"nodes": 2}, {"data": 2, "shard": 4}, None),
        ({"nodes": 2}, {"data": 1, "shard": 4}, "= 4, but train.ranks × compute.nodes = 8: set train.ranks × comp"),
        ({"nodes": 1}, {"shard": 8}, "= 8, but train.ranks = 4: set train.ranks to 8"),
        ({"nodes": 4, "min_ranks": 4}, {"shard": 8}, None),  # with two or four of them
        ({"nodes": 2, "min_ranks": 4}, {"shard": 3}, "but train.ranks × compute.nodes = 8"),
    ],
)
def test_sizes_are_those_of_all_machines(
    monkeypatch: pytest.MonkeyPatch, compute: dict[str, object], parallel: dict[str, object], said: str | None
) -> None:
    values = TINY | {"train": {"steps": 1, "ranks": 4, "parallel": parallel}, "compute": compute}
    if said is None:
        Params.model_validate(values)
        return
    with pytest.raises(ValueError, match=r".") as caught:
        Params.model_validate(values)
    assert said in str(caught.value)
    monkeypatch.setenv("PET_NNODES", "2")  # which the cluster's operator knows better
    Params.model_validate(values)


def test_a_batch_is_shared_by_as_many_ranks_as_it_has_samples() -> None:
    assert Layout.of(params(batch=8, shard=8), 8, 0).data_world == 8
    with pytest.raises(ParamsError, match=r"data 3 × shard 3 = 9 > stream.batch_size = 8"):
        Layout.of(params(batch=8, shard=3), 9, 0)
    with pytest.raises(ParamsError, match=r"microbatches 4 > .* = 8 / 4 = 2 samples of a rank"):
        Layout.of(params(batch=8, pipeline=2), 8, 0)


def transformer(**args: object) -> Transformer:
    return Transformer(vocab_size=11, seq_len=8, **{"dim": 8, "layers": 5, "heads": 2} | args)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_stages_one_after_the_other_are_the_model(stages: int, tied: bool) -> None:
    torch.manual_seed(1)
    whole = transformer(tied=tied).eval()
    tokens = torch.randint(0, 11, (3, 8))
    x, names = tokens, []
    for stage in range(stages):
        part = transformer(tied=tied).eval()
        part.load_state_dict(whole.state_dict())
        shared = part.keep_stage(stage, stages)
        assert shared == (["embedding.weight"] if tied and stage in (0, stages - 1) else [])
        assert {name: t for name, t in part.state_dict().items() if not torch.equal(t, whole.state_dict()[name])} == {}
        names += [name for name in part.state_dict() if not (name in shared and stage)]
        x = part(x)
        if stage < stages - 1:
            assert x.shape == whole.stage_output(tokens).shape
            assert x.dtype == whole.stage_output(tokens).dtype
    assert sorted(names) == sorted(whole.state_dict())
    assert torch.equal(x, whole(tokens))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("kind", ["pipeline", "tensor"])
def test_a_model_without_a_plan_is_named(kind: str) -> None:
    layout = Layout((2, 1, 1, 1) if kind == "pipeline" else (1, 1, 1, 2), 0)
    cut = keep_stage if kind == "pipeline" else partial(share_products, mesh=object())  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match=rf"train.parallel.{kind} = 2: the model Plain does not say how"):
        cut(Plain(), layout)


def test_blocks_are_found_or_declared() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    wrapped = nn.ModuleDict({"body": model, "head": nn.Linear(2, 2)})
    assert units_of(wrapped) == [model[0], model[2]]
    assert len(units_of(transformer())) == 5
    assert units_of(Plain()) == []
    with pytest.raises(ParamsError, match="Plain has no blocks to recompute"):
        refine_units(Plain(), params(activation_checkpointing=True).train.parallel)


def test_recomputing_activations_changes_nothing_and_keeps_fewer() -> None:
    kept, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(2)
        model = transformer(dropout=0.1, layers=2)
        refine_units(model, params(activation_checkpointing=recompute).train.parallel)
        names = list(model.state_dict())
        saved: list[int] = []

        def note(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.nbytes)
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(torch.arange(8)[None]).square().sum()
        loss.backward()
        kept.append(sum(saved))
        gradients.append([p.grad for p in model.parameters()])
        assert names == list(transformer(layers=2).state_dict())
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own code
def test_a_compiled_model_gives_the_same_answers() -> None:
    torch.manual_seed(4)
    plain, compiled = transformer(layers=1), transformer(layers=1)
    compiled.load_state_dict(plain.state_dict())
    refine_units(compiled, params(compile=True).train.parallel)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.units()[0]._compiled_call_impl is not None
    tokens = torch.arange(8)[None]
    with Precision.choose("fp32", torch.device("cpu")).autocast():
        for model in (plain, compiled):
            model(tokens).square().sum().backward()
    torch.testing.assert_close(compiled(tokens), plain(tokens), rtol=1e-5, atol=1e-6)
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
