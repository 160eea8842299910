"""Files that were accepted, as pictures of the web and as volumes of a pipeline."""

from __future__ import annotations

from hypothesis.strategies import SearchStrategy

from dicomnode import decoding
from dicomnode.errors import CannotUnderstand, GeometryError, InputRefused
from dicomnode.reading import volumes
from dicomnode.transcoding import convert
from dicomnode.web import pictures, rendered
from tests.fuzz.instances import accept, changed_files, temporary_file
from tests.fuzz.oracle import recorded_errors

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (CannotUnderstand,)
_OPTIONS = rendered.RenderOptions.from_query({}, "image/png")


def target(data: bytes) -> None:
    """``data``: a file; only one that the receiver takes is opened, by the processes that decode."""
    with temporary_file(data) as path, recorded_errors() as errors:
        accept(path)
        for open_file in (
            lambda: decoding.run(rendered.render_frame, path, 0, _OPTIONS),
            lambda: pictures.draw_thumbnail(path),
            lambda: b"".join(convert.convert_to_explicit_little_endian(path)),
            lambda: pictures.list_planes((path,)),
            lambda: volumes.read([path]),
        ):
            try:
                open_file()
            except (InputRefused, GeometryError):
                continue
        assert not errors, errors


def examples() -> SearchStrategy[bytes]:
    """Files with other values of the attributes that describe pixels, and with changed bytes."""
    return changed_files()
