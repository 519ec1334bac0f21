"""Raw inputs in, answers with names out: the same as in training, and clear errors for what does not fit."""

import io
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.release_samples import IMAGE, SPECS, TEXT

from pipelines.ingest.encoders.encode import pixels
from pipelines.models import ModelConfig, build_model
from pipelines.models.predictor import Predictor, kind_of
from pipelines.params import Shard
from pipelines.serving.generation import decode
from pipelines.serving.prediction import predictions
from storage.errors import DataError, FormatError


def predictor(kind: str, spec: dict | None = None) -> Predictor:
    spec = spec or SPECS[kind]
    model = {"name": "transformer", "args": {"dim": 16, "layers": 1, "heads": 2}} if kind == "text" else {"name": "mlp"}
    model = {"args": {}} | model
    seq_len = 16 if kind == "text" else None
    module = build_model(model["name"], model["args"], spec, seq_len, seed=3).eval()
    return Predictor(module, ModelConfig(model, spec, seq_len, "any", "0" * 64))


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_kinds():
    assert {kind: kind_of(spec) for kind, spec in SPECS.items()} == {kind: kind for kind in SPECS}
    assert kind_of(SPECS["table"] | {"features": None}) == "array"


@pytest.mark.parametrize("shape", [(8, 8), (31, 17), (8, 8, 3)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_decoded_as_the_shard_stage_does(shape, mode):
    data = png(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    channels = 1 if mode == "L" else 3
    spec = IMAGE | {"inputs": {"x": {"dtype": "uint8", "shape": [8, 8, channels]}}, "image_mode": mode}
    spec |= {"mean": [0.0] * channels, "std": [1.0] * channels}
    table = pa.table({"image": pa.array([data], pa.large_binary()), "id": ["a"]})
    expected = pixels(table, Shard(image_size=[8, 8], image_mode=mode, target_mb=1.0, shuffle_objects=1))
    np.testing.assert_array_equal(predictor("image", spec).pixels(data, "a")[None], expected)


def test_what_is_no_image_is_named():
    with pytest.raises(DataError, match=r"cat\.png: cannot be decoded as an image"):
        predictor("image").pixels(b"not a picture", "cat.png")


def test_probabilities_are_those_of_the_model():
    model = predictor("image")
    inputs = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)  # more than one batch
    answers = model.answer(inputs)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(inputs)).double().softmax(-1)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    assert answers["label"] == [IMAGE["classes"][i] for i in expected.argmax(-1)]
    assert answers["probability"] == [max(row) for row in answers["probabilities"]]


def test_no_rows_give_no_answers():
    assert predictor("image").answer(np.empty((0, 8, 8, 1), np.uint8))["label"] == []


def test_columns_are_found_by_name_whatever_their_order():
    rows = predictor("table").rows({"height": [3.0], "other": ["?"], "width": [1.0], "mean area": [2.0]}, "t.csv")
    np.testing.assert_array_equal(rows, np.float32([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width,height\n1,2\n", r"lacks 1 of the model's 3 columns: mean area\. It has: width, height"),
        ("width,mean area,height\n1,2,3\n1,x,3\n", r"row 2, column 'mean area': 'x' is not a finite number"),
        ("width,mean area,height\n1,2,3\n1,2,nan\n", r"row 2, column 'height': 'nan' is not a finite number"),
        ("width,mean area,height\n1e39,2,3\n", r"row 1, column 'width': '1e39' is not a finite number"),
        ("width,mean area,height\n1,,3\n", r"row 1, column 'mean area': '' is not a finite number"),
        ("width,mean area,height\n1,1_000,3\n", r"row 1, column 'mean area': '1_000' is not a finite number"),
        ("width,mean area,height\n1,２,3\n", r"row 1, column 'mean area': '２' is not a finite number"),
        ("width,mean area,height,width\n1,2,3,4\n", r"the header has width twice"),
        ("width,mean area,height\n1,2\n", r"table\.csv:2: 2 fields where the header has 3"),
        (b"width\n\xff\xfe\n", r"not a CSV file in UTF-8"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, text, message):
    file = tmp_path / "table.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(predictions(predictor("table"), [file]))


def test_tabs_separate_tsv_as_in_curate(tmp_path):
    answers = []
    for name, between in (("t.csv", ","), ("t.TSV", "\t")):
        (tmp_path / name).write_text("width,other,mean area,height\n1,x,2,3\n".replace(",", between))
        answers.append([answer for _, answer in predictions(predictor("table"), [tmp_path / name])])
    assert answers[0] == answers[1]


def test_rows_of_a_table_are_named_by_their_line(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("height,mean area,width\n" + "3,2,1\n" * 1200 + "\n9,8,7\n")
    found = list(predictions(predictor("table"), [file]))
    assert len(found) == 1201
    assert found[0][0] == f"{file}:2"
    assert found[-1][0] == f"{file}:1203"
    assert len({tuple(answer.values()) for _, answer in found[:1200]}) == 1


def test_a_row_with_line_breaks_is_named_by_its_first_line_as_in_curate(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('height,note,mean area,width\n3,"a\nb",2,1\n\n3,c,2,1\n')
    assert [name for name, _ in predictions(predictor("table"), [file])] == [f"{file}:2", f"{file}:5"]


@pytest.mark.parametrize("lost", ['"five inch', '"five "inch', '"five inch\n4,"x"'])
def test_a_quote_without_a_partner_swallows_no_rows(tmp_path, lost):
    """They would be missing from the answers without a word."""
    file = tmp_path / "t.csv"
    file.write_text(f"height,mean area,width,note\n1,2,3,x\n4,5,6,{lost}\n7,8,9,x\n1,2,3,y\n")
    with pytest.raises(DataError, match=r"t\.csv: not a CSV file in UTF-8 .*Is a quote missing"):
        list(predictions(predictor("table"), [file]))


def test_many_columns_beside_the_models_cost_little(tmp_path):
    """Each was looked for among all the others: 100,000 took minutes."""
    more = 200_000
    file = tmp_path / "t.csv"
    file.write_text(f"height,mean area,width{',c' * more}\n1,2,3{',0' * more}\n")
    begin = time.process_time()
    assert len(list(predictions(predictor("table"), [file]))) == 1
    assert time.process_time() - begin < 20


def test_text_depends_on_the_seed_alone():
    model = predictor("text")
    prompt = model.encode("abc")
    options = {"tokens": 40, "temperature": 0.9, "top_k": 20}
    first = list(model.write(prompt, seed=1, **options))
    torch.rand(7)  # the global generator has no part in it
    assert list(model.write(prompt, seed=1, **options)) == first
    assert list(model.write(prompt, seed=2, **options)) != first


def test_temperature_zero_takes_the_likeliest():
    model = predictor("text")
    prompt = model.encode("abc")
    first = next(model.write(prompt, tokens=1, temperature=0.0, top_k=None, seed=0))
    with torch.inference_mode():
        assert first == int(model.module(torch.tensor([prompt]))[0, -1].argmax())
    assert first == next(model.write(prompt, tokens=1, temperature=1.0, top_k=1, seed=5))


def test_the_model_sees_the_last_seq_len_tokens_only():
    model = predictor("text")
    options = {"tokens": 5, "temperature": 1.0, "top_k": None, "seed": 0}
    tail = b"0123456789abcdef"
    assert list(model.write([*b"one ", *tail], **options)) == list(model.write([*b"two ", *tail], **options))


class EndsAfterTwo(torch.nn.Module):
    """Writes `x` until it has seen two of them, then the separator."""

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 257)
        logits[..., -1, TEXT["separator"] if tokens[0].tolist().count(ord("x")) >= 2 else ord("x")] = 50.0
        return logits


def test_the_separator_ends_the_text():
    model = Predictor(EndsAfterTwo(), ModelConfig({"name": "m", "args": {}}, TEXT, 16, "language", "0"))
    assert bytes(model.write(model.encode("a"), tokens=9, temperature=1.0, top_k=None, seed=0)) == b"xx"


def test_an_empty_prompt_begins_a_document():
    assert predictor("text").encode("") == [TEXT["separator"]]


@pytest.mark.parametrize("samples", ["sequences", "documents"])
def test_without_a_separator_a_prompt_begins_as_documents_do_and_an_empty_one_is_refused(samples):
    spec = {name: value for name, value in TEXT.items() if name != "separator"} | {"vocab_size": 256}
    config = ModelConfig({"name": "m", "args": {}}, spec, 16, "language", "0", samples=samples)
    model = Predictor(torch.nn.Identity(), config)
    assert model.encode("ab") == [97, 98]
    with pytest.raises(DataError, match=r"prompt is empty.* no separator"):
        model.encode("")


def test_an_unknown_encoding_is_refused():
    with pytest.raises(FormatError, match="'bpe'"):
        predictor("text", TEXT | {"encoding": "bpe"}).encode("a")


def test_characters_appear_when_they_are_whole():
    assert list(decode(iter("aé".encode()))) == ["a", "é", ""]
    assert "".join(decode(iter(b"\xc3"))) == "�"
