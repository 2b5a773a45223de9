"""The base of every registry document. A document is stored as an immutable revision,
`{format, kind, name, revision, sha256, payload}`; readers of an older format refuse a newer."""

import msgspec

FORMAT = 1


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value in the registry. Its kind is its class's `tag`; its name is given on saving."""


def kind_of_document(document: type[Document]) -> str:
    """The kind: "dataset", "index" … Raises TypeError for an abstract class."""
    tag = document.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{document.__name__} has no tag")
    return tag
