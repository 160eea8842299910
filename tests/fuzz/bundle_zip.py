"""Zips of bundles: unpacked below their folder, or refused; no file is written anywhere else."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from model_zoo.bundle import BundleError
from model_zoo.unpacking import bundle_name, copy_bundle
from tests.fuzz.changes import change

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (BundleError,)
_MOST_BYTES = 1_000_000
_NAMES = (
    "configs/metadata.json", "configs/inference.json", "models/model.safetensors", "b/configs/metadata.json",
    "LICENSE", "../x", "/x", "a/../../x", "..\\x", "C:x", "configs", "configs/", "configs/metadata.json/x", ".hidden",
    "a\0b", "\u202e", "d/" * 20, "d" * 300, "", ".", "..", "./configs/metadata.json", "CON", "é", "~/x", "$HOME/x",
    "`id`",
)  # fmt: skip
_CONTENTS = (b"{}", b"", b"x" * 100, bytes(2_000_000))
_LINK = 0o120777 << 16


def target(data: bytes) -> None:
    """``data``: the zip."""
    with TemporaryDirectory() as folder:
        source, place = Path(folder) / "b.zip", Path(folder) / "work" / "bundle"
        source.write_bytes(data)
        (Path(folder) / "work").mkdir()
        try:
            copy_bundle(source, place, max_bytes=_MOST_BYTES)
            assert bundle_name(source)
        finally:
            outside = [path for path in Path(folder).rglob("*") if not path.is_relative_to(place)]
            assert sorted(outside) == [source, place.parent], outside
            assert not any(path.is_symlink() for path in place.rglob("*"))
            assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) <= _MOST_BYTES


def examples() -> SearchStrategy[bytes]:
    """Zips with odd names, links and sizes, changed at their bytes."""
    whole = _zip([("configs/metadata.json", b"{}", 0), ("models/model.safetensors", b"x", 0)], zipfile.ZIP_DEFLATED)
    return st.one_of(_zips(), st.just(whole)).flatmap(lambda content: change(content, [whole]))


@st.composite
def _zips(draw: DrawFn) -> bytes:
    member = st.tuples(
        st.sampled_from(_NAMES), st.sampled_from(_CONTENTS), st.sampled_from((0, 0, 0, _LINK, 0o040755 << 16))
    )
    members = [("configs/metadata.json", b"{}", 0), *draw(st.lists(member, max_size=4))]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return _zip(members, draw(st.sampled_from(methods)))


def _zip(members: list[tuple[str, bytes, int]], method: int) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # names that stand twice
        for name, content, attributes in members:
            info = zipfile.ZipInfo(name or "empty")
            info.external_attr, info.compress_type = attributes, method
            archive.writestr(info, content)
    return file.getvalue()
