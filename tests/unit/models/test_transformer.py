"""The transformer: causal, rotary, and what its options do."""

import pytest
import torch

from pipelines.models.architectures.transformer import Transformer, rotary_table, rotate


def make(**changes: object) -> Transformer:
    torch.manual_seed(0)
    options = {"vocab_size": 31, "seq_len": 12, "dim": 16, "layers": 2, "heads": 2} | changes
    return Transformer(**options).eval()


def test_an_answer_depends_on_no_later_token() -> None:
    model, tokens = make(), torch.arange(12)[None] % 31
    changed = tokens.clone()
    changed[0, 7:] = 30
    before, after = model(tokens), model(changed)
    assert before.shape == (1, 12, 31)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    cos, sin = rotary_table(20, 8, 10_000.0)
    torch.manual_seed(1)
    query, key = torch.randn(8), torch.randn(8)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x.expand(1, 1, 1, 8), cos[position : position + 1], sin[position : position + 1]).flatten()

    assert torch.allclose(turned(query, 9).norm(), query.norm(), atol=1e-5)
    near, far = (turned(query, a) @ turned(key, a - 3) for a in (5, 17))
    assert torch.allclose(near, far, atol=1e-4)
    assert not torch.allclose(near, turned(query, 5) @ turned(key, 3), atol=1e-3)


def test_tied_embeddings_have_no_head_of_their_own() -> None:
    tied, untied = make(tied=True), make(tied=False)
    difference = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert difference == 31 * 16
    assert "head.weight" not in tied.state_dict()


def test_dropout_acts_in_training_only() -> None:
    model, tokens = make(dropout=0.5), torch.arange(12)[None]
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("options", [{"dim": 15}, {"dim": 18, "heads": 6}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        make(**options)


def test_too_long_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens"):
        make()(torch.zeros(1, 13, dtype=torch.long))
