"""Image files as samples: what is kept, what is set aside and why."""

import io

import numpy as np
from PIL import Image
from support.whole_files import whole

from pipelines.ingest.readers import images
from pipelines.params import Curate
from storage.images import MAX_PIXELS

read_image = whole(images.read_image)


def saved(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def test_images_must_decode_whole() -> None:
    sink = io.BytesIO()
    Image.new("L", (5, 4), 7).save(sink, "PNG")
    whole = sink.getvalue()
    rows = read_image("cat/1.png", whole, Curate())
    assert rows.table.to_pydict() == {"image": [whole], "height": [4], "width": [5], "label": ["cat"]}
    assert "not decodable" in read_image("cat/1.png", whole[: len(whole) // 2], Curate()).quarantined[0]["reason"]
    assert "folder for each class" in read_image("1.png", whole, Curate()).quarantined[0]["reason"]


def test_what_is_no_image_has_the_same_reason_each_time() -> None:
    """The quarantine is part of the version."""
    first, second = (read_image("cat/1.png", data, Curate()).quarantined for data in (b"none", b"no more"))
    assert first == second
    assert [entry["reason"][:34] for entry in first] == ["not decodable: none of JPEG, PNG, "]


def test_height_and_width_are_as_the_image_is_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = saved(Image.new("L", (5, 4)), "JPEG", exif=exif)
    row = read_image("cat/1.jpg", data, Curate()).table.to_pylist()[0]
    assert (row["height"], row["width"], row["image"]) == (5, 4, data)


def test_what_could_not_be_shown_right_is_set_aside_with_its_reason() -> None:
    images = {
        "float": saved(Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)), "TIFF"),
        "32 bits": saved(Image.fromarray(np.arange(16, dtype=np.int32).reshape(4, 4)), "TIFF"),
        "large": saved(Image.new("1", (1001, 1000)), "PNG"),
        "EPS": saved(Image.new("RGB", (4, 4)), "EPS"),
    }
    params = Curate(max_pixels=1_000_000)
    reasons = {
        name: read_image(f"cat/{name}.png", data, params).quarantined[0]["reason"] for name, data in images.items()
    }
    assert "mode F" in reasons["float"]
    assert "mode I" in reasons["32 bits"]
    assert "1001 x 1000 = 1,001,000 pixels" in reasons["large"]
    assert "raise curate.max_pixels" in reasons["large"]
    assert "none of JPEG, PNG" in reasons["EPS"]


def test_what_is_predicted_has_the_bound_that_data_has() -> None:
    assert Curate().max_pixels == MAX_PIXELS
