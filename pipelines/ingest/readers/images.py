"""Image files in a folder for each class → samples."""

from pathlib import PurePosixPath

import pyarrow as pa

from pipelines.ingest.duplicates.content import digests_of, to_arrow
from pipelines.ingest.rows import Rows
from pipelines.params import Curate
from storage.errors import DataError
from storage.images import image_size

_COLUMNS = {"image": pa.large_binary(), "height": pa.int32(), "width": pa.int32(), "label": pa.string()}


def read_image(name: str, data: bytes, params: Curate) -> Rows:
    """An encoded image, kept as it is once it has decoded whole; its folder's name is the label. `height` and `width`
    are as it is shown, turned as its EXIF orientation says."""
    schema = pa.schema(_COLUMNS)
    label = PurePosixPath(name).parent.name
    try:
        if not label:
            raise DataError("an image folder needs a folder for each class: <class>/<file>")
        height, width = image_size(data, params.max_pixels)
    except DataError as error:
        return Rows([], schema.empty_table(), [{"name": name, "reason": str(error)}])
    columns = {"image": [data], "height": [height], "width": [width], "label": [label]}
    digest = to_arrow(digests_of([data])) if params.deduplicate else None
    return Rows([name], pa.table(columns, schema=schema), content=digest)
