"""mlp and cnn: scaling, shapes, and independence of the samples of a batch."""

import numpy as np
import pytest
import torch

from pipelines.models.architectures.cnn import CNN
from pipelines.models.architectures.mlp import MLP
from pipelines.models.architectures.scaling import Standardise


def test_standardising_matches_numpy_and_survives_a_constant_feature() -> None:
    x = np.random.default_rng(0).normal(7, 3, (50, 3)).astype(np.float32)
    x[:, 2] = 4
    out = Standardise(x.mean(0).tolist(), [*x.std(0)[:2].tolist(), 0.0])(torch.from_numpy(x)).numpy()
    assert np.allclose(out[:, :2], (x[:, :2] - x[:, :2].mean(0)) / x[:, :2].std(0), atol=1e-5)
    assert (out[:, 2] == 0).all()


def test_mlp_is_invariant_to_the_units_of_its_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    one = MLP(in_features=3, num_classes=2, mean=[0, 0, 0], std=[1, 1, 1]).eval()
    other = MLP(in_features=3, num_classes=2, mean=[5, 5, 5], std=[100, 100, 100]).eval()
    other.load_state_dict({k: v for k, v in one.state_dict().items() if "standard" not in k}, strict=False)
    assert torch.allclose(one(x), other(x * 100 + 5), atol=1e-4)


def test_a_regression_answers_one_number_a_sample_in_the_targets_unit() -> None:
    torch.manual_seed(0)
    model = MLP(in_features=3, num_classes=None, target_mean=1000.0, target_std=10.0).eval()
    answer = model(torch.randn(5, 3))
    assert answer.shape == (5,)
    assert ((answer - 1000).abs() < 50).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 30, 3), (3, 3, 1)])
def test_cnn_takes_images_as_they_are_stored(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = CNN(input_shape=shape, num_classes=4, mean=[127.0], std=[50.0]).eval()
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    together = model(images)
    assert together.shape == (5, 4)
    assert torch.allclose(together[2:3], model(images[2:3]), atol=1e-5), "a sample's answer depends on its batch"


def test_cnn_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="not height, width, channels"):
        CNN(input_shape=(30,), num_classes=2)
