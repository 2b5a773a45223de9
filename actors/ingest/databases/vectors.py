"""How long vectors are, before a column of them is planned."""

import pyarrow as pa
import pyarrow.compute as pc


def vector_lengths(values: pa.Array) -> list[int]:
    """Of lists, or of JSON texts of them; without nulls and empty ones."""
    if pa.types.is_string(values.type):
        return [text.count(",") + 1 for text in values.drop_null().to_pylist() if text.strip("[] ")]
    return [size for size in pc.list_value_length(values).drop_null().to_pylist() if size]
