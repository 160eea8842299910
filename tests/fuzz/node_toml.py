"""node.toml: read as written, or refused with a ConfigError."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dicomnode.config import loading
from dicomnode.errors import ConfigError
from tests.fuzz.changes import change

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (ConfigError,)
_SHIPPED = Path(__file__).parents[2] / "node.toml"
_VALUES = (
    "0", "-1", "1", "65536", "1e400", "nan", "inf", "true", '""', '"x"', '"~("', '"~' + "(" * 300 + '"', "[]", "[[]]",
    "{}", '["a", 1]', "2020-01-01", "07:32:00", "9" * 400, '"../../x"', '"\\u0000"', '"10.0.0.0/8"', '["300.1.1.1"]',
    "{ Modality = 5 }", '{ Modality = "< x" }', '"$(id)"', '"http://["', "0x10", '"""\n"""',
)  # fmt: skip
_LINES = (
    "[node]", "[[routes]]", "[[peers]]", "[x]", "[node.tls]", "[[node]]", "[[routes.match]]", "x = 1", "name = 'a'",
    "[[learning]]", "[a.b.c.d]", "['']", '"\\x"', "[[senders]]", "match = { PatientName = 'exists' }", "\ufeff", "\0",
    "=", "path = 'x'",
)  # fmt: skip


def target(data: bytes) -> None:
    """``data``: the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "node.toml"
        path.write_bytes(data)
        loading.load(path)


def examples() -> SearchStrategy[bytes]:
    """Parts of the shipped file with other values and with lines at the wrong place, changed at their bytes."""
    return _files().flatmap(change)


@st.composite
def _files(draw: DrawFn) -> bytes:
    lines = [line.removeprefix("# ") for line in _SHIPPED.read_text().splitlines()]
    kept = [line for line in lines if " = " in line or line.startswith("[")]
    start = draw(st.integers(0, len(kept)))
    part = kept[start : start + draw(st.integers(0, 40))]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(part)))
        if draw(st.booleans()) and at < len(part) and " = " in part[at]:
            part[at] = f"{part[at].partition(' = ')[0]} = {draw(st.sampled_from(_VALUES))}"
        else:
            part.insert(at, draw(st.sampled_from(_LINES)))
    return "\n".join(part).encode()
