"""resnet and vit: shapes, independence of the samples of a batch, positions, and that they learn."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pipelines.models import build_model
from pipelines.models.architectures.resnet import ResNet
from pipelines.models.architectures.vit import ViT, sincos
from storage.errors import ParamsError

DIGITS = {
    "inputs": {"x": {"dtype": "uint8", "shape": [8, 8, 1]}},
    "target": {"name": "label", "dtype": "int64"},
    "classes": [str(digit) for digit in range(10)],
    "mean": [78.0],
    "std": [96.0],
}
SMALL = {"resnet": {"widths": [16, 32], "depths": [1, 1]}, "vit": {"patch": 4, "dim": 32, "layers": 1, "heads": 2}}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from more, and lose much where another process computes too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 30, 3), (70, 66, 3)])
def test_pictures_as_they_are_stored_whatever_else_is_in_the_batch(name: str, shape: tuple[int, int, int]) -> None:
    spec = DIGITS | {"inputs": {"x": {"dtype": "uint8", "shape": list(shape)}}, "mean": [127.0], "std": [60.0]}
    model = build_model(name, SMALL[name], spec)  # in training mode: group norm keeps no averages
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    together = model(images)
    assert together.shape == (5, 10)
    assert torch.allclose(together[2:3], model(images[2:3]), atol=1e-4), "a sample's answer depends on its batch"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "epochs"), [("resnet", 6), ("vit", 8)])
def test_a_few_passes_over_digits_are_learnt(name: str, epochs: int) -> None:
    data = load_digits()
    images = torch.from_numpy((data.images * 15.9375).astype(np.uint8))[..., None]
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    model = build_model(name, SMALL[name], DIGITS, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = [part for _ in range(epochs) for part in train.split(32)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=len(batches))
    for batch in batches:
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    accuracy = (model.eval()(images[test]).argmax(-1) == labels[test]).float().mean()
    assert accuracy > 0.94


def test_batch_norm_is_there_for_those_who_want_it_and_mixes_samples() -> None:
    model = build_model("resnet", SMALL["resnet"] | {"norm": "batch"}, DIGITS)
    images = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    nn.init.ones_(model.blocks[0].second_norm.weight)
    assert not torch.allclose(model(images)[:2], model(images[:2]), atol=1e-3)


def test_the_stem_fits_the_picture() -> None:
    def first(size: int, **options: object) -> tuple[int, ...]:
        return ResNet(input_shape=(size, size, 3), num_classes=2, **options).stem[0].kernel_size  # type: ignore[arg-type]

    assert (first(32), first(64), first(224)) == ((3, 3), (7, 7), (7, 7))
    assert (first(32, stem="large"), first(64, stem="small")) == ((7, 7), (3, 3))


def test_the_default_resnet_is_the_one_with_18_layers() -> None:
    model = ResNet(input_shape=(224, 224, 3), num_classes=1000)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 18 + 3  # and 3 shortcuts
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # torchvision's resnet18


def test_fixed_positions_differ_and_tell_rows_from_columns() -> None:
    table = sincos(5, 7, 32)
    assert table.shape == (35, 32)
    distances = torch.cdist(table, table) + torch.eye(35) * 9
    assert distances.min() > 0.1
    row_by_row = table.view(5, 7, 32)
    assert torch.equal(row_by_row[:, 3, :16], row_by_row[:, 4, :16])
    assert torch.equal(row_by_row[2, :, 16:], row_by_row[3, :, 16:])


def test_a_patch_is_a_square_of_the_picture() -> None:
    model = ViT(input_shape=(4, 5, 1), num_classes=2, patch=2, dim=8, layers=1, heads=1)
    picture = torch.arange(20).view(1, 4, 5, 1)
    patches = model._patches(picture)
    assert patches.shape == (1, 6, 4)
    assert patches[0, 1].tolist() == [2, 3, 7, 8]
    assert patches[0, 5].tolist() == [14, 0, 19, 0]  # padded with the mean, which is 0 at unit scale


def test_order_matters_to_a_vit_and_learned_positions_are_parameters() -> None:
    for kind in ("sincos", "learned"):
        model = build_model("vit", SMALL["vit"] | {"positions": kind}, DIGITS)
        image = torch.randint(0, 256, (1, 8, 8, 1), dtype=torch.uint8)
        assert not torch.allclose(model(image), model(image.flip(1)), atol=1e-4)
        assert ("positions" in dict(model.named_parameters())) == (kind == "learned")


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("resnet", {"widths": [8], "depths": [1, 1]}, "must be as many"),
        ("resnet", {"norm": "layer"}, r"model\.args\.norm: .*'group' or 'batch' \(given: 'layer'\)"),
        ("vit", {"dim": 30}, "must be a multiple"),
        ("vit", {"positions": "rotary"}, r"model\.args\.positions: .*'sincos' or 'learned'"),
    ],
)
def test_impossible_sizes_are_refused(name: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        build_model(name, args, DIGITS)
