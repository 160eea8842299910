"""Every key of node.toml is documented, and every mistake is named with its line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dicomnode import config as configuration
from dicomnode.config.section import Section
from dicomnode.errors import ConfigError

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "node.toml"

_PEER = '[[peers]]\nname = "pacs"\nae_title = "PACS"\nport = 104\n'
_ROUTE = '[[routes]]\nname = "r"\npipeline = "p"\n'


def uncomment() -> str:
    """Return the shipped file with every commented-out key switched on."""
    lines = SHIPPED.read_text().splitlines()
    return "\n".join(re.sub(r"^# (?=\[|[a-z_]+ = )", "", line) for line in lines)


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_every_key_is_documented_in_the_shipped_file() -> None:
    pending: list[tuple[str, Any, type[Section]]] = [("", tomllib.loads(uncomment()), configuration.Config)]
    while pending:
        name, table, section = pending.pop()
        kinds = section.list_keys()
        assert sorted(table) == sorted(kinds), f"[{name}] in node.toml"
        for key, kind in kinds.items():
            if kind is not None:
                inner = table[key][0] if isinstance(table[key], list) else table[key]
                pending.append((f"{name}.{key}".strip("."), inner, kind))


def test_shipped_file_is_valid_also_with_everything_switched_on(tmp_path: Path) -> None:
    assert configuration.load(SHIPPED).routes[0].pipeline == "mri_reconstruction"
    assert configuration.load(write(tmp_path, uncomment())).senders[0].ae_title == "MR1"


def test_commented_out_values_are_the_defaults() -> None:
    shipped, default = configuration.load(SHIPPED), configuration.Config()
    values = tomllib.loads(uncomment())
    for section in ("spool", "completion", "delivery", "results", "quality", "worker"):
        own = SHIPPED.read_text().split(f"[{section}]\n")[1].split("\n[")[0]
        defaults = getattr(default, section)
        written = type(defaults).model_validate(values[section])
        for key in values[section]:
            if f"# {key} = " in own:
                assert getattr(defaults, key) == getattr(written, key), f"{section}.{key}"
    assert shipped.worker == default.worker


def test_init_writes_the_shipped_file() -> None:
    assert (ROOT / "dicomnode" / "node.toml").read_text() == SHIPPED.read_text()


def test_a_new_node_runs_its_routes_and_sends_no_generated_image_to_a_pacs() -> None:
    routes = {route.pipeline: route for route in configuration.load(SHIPPED).routes}
    assert set(routes) == {"mri_reconstruction", "pet_synthesis", "synthetic_dir"}
    assert [route.name for route in routes.values() if route.destinations] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[node]\nhost = "x"\nae_titel = "X"\n',
            "line 3: node.ae_titel: unknown key 'ae_titel'; did you mean 'ae_title'?",
        ),
        ("[nodes]\n", "line 1: nodes: unknown key 'nodes'; did you mean 'node'?"),
        ("[spool]\n\nmin_free_gb = -1\n", "line 3: spool.min_free_gb: Input should be greater than"),
        ('[node]\nae_title = "MORE THAN SIXTEEN CHARACTERS"\n', "line 2: node.ae_title: an AE title has"),
        (_ROUTE, "line 1: routes.1.match: 'match' is missing"),
        (_ROUTE + 'match = { Modalty = "MR" }\n', "line 4: routes.1.match.Modalty: 'Modalty' is no DICOM keyword"),
        (_ROUTE + 'match = { Modality = "~(" }\n', "is no regular expression"),
        (_ROUTE + 'match = { EchoTime = "< x" }\n', "compares with something that is no number"),
        (
            _ROUTE + 'match = {}\ndestinations = ["nobody"]\n',
            "line 5: route 'r' delivers to 'nobody', which is no peer",
        ),
        (_PEER + "\n" + _PEER, "line 7: another of the peers is already named 'pacs'"),
        (_PEER + _ROUTE + 'match = {}\nmodle = "x"\n', "line 9: routes.1.modle: unknown key 'modle'; did you mean"),
        ('[[senders]]\nae_title = "A"\naddresses = ["10.0.0.0/33"]\n', "line 3: senders.1.addresses.1:"),
        ("[node\n", "line 1"),
        ("[completion]\nmaximum_s = inf\n", "line 2: completion.maximum_s: Input should be a finite number"),
        ("[completion]\nmaximum_s = 1e12\n", "line 2: completion.maximum_s: Input should be less than or equal to"),
        ("[completion]\nquiet_s = nan\n", "line 2: completion.quiet_s: Input should be"),
        ("[completion]\nquiet_s = 7200\n", "line 1: completion: quiet_s = 7200 is above maximum_s = 3600"),
        ("[delivery]\ngive_up_after_h = 1e30\n", "line 2: delivery.give_up_after_h: Input should be less than"),
        ("[retention]\nsources_days = 1e9\n", "line 2: retention.sources_days: Input should be less than"),
        ("[worker]\nlease_s = inf\n", "line 2: worker.lease_s: Input should be"),
        ("[spool]\nmin_free_gb = inf\n", "line 2: spool.min_free_gb: Input should be a finite number"),
        (f"[worker]\nattempts = {10**30}\n", "line 2: worker.attempts: Input should be less than or equal to"),
        ('[results]\nuid_prefix = "abc"\n', "line 2: results.uid_prefix: 'abc' is not a UID root"),
        ('[worker]\ndevice = "gpu"\n', 'line 2: worker.device: a device is "auto", "cpu", "cuda", "cuda:0"'),
        ('[node]\ndata_dir = "~/data"\n', "line 2: node.data_dir: '~' is not expanded: write the whole path"),
        ('[spool]\ndir = "~/spool"\n', "line 2: spool.dir: '~' is not expanded"),
        ('[models]\ntrusted_keys = ["a.pem", "~/b.pem"]\n', "line 2: models.trusted_keys: '~' is not expanded"),
        (_PEER.replace("[[peers]]", "[peers]"), "line 1: peers: there may be several: write [[peers]]"),
        (_ROUTE.replace("[[routes]]", "[routes]"), "line 1: routes: there may be several: write [[routes]]"),
        ("[[node]]\n", "line 1: node: there is one: write [node]"),
        ("", "is empty: 'dicomnode init' writes one with every key"),
        ("\n \n", "is empty"),
        ('path = "x"\n', "unknown key 'path'"),
    ],
)
def test_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configuration.load(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes('[node]\n# Büro\nae_title = "A"\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match="line 2: byte 0xfc is no UTF-8; save the file as UTF-8"):
        configuration.load(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes('[node]\r\nae_title = "A"\r\n'.encode("utf-8-sig"))
    assert configuration.load(path).node.ae_title == "A"


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dicomnode init"):
        configuration.load(tmp_path / "node.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = configuration.load(write(tmp_path, '[node]\ndata_dir = "there"\n'))
    assert config.spool_dir == tmp_path / "there" / "spool"
    assert config.database_url == f"sqlite:///{tmp_path / 'there' / 'node.sqlite'}"


def test_database_password_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("p@ss/word\n")
    text = '[database]\nurl = "postgresql://u@db/n"\npassword_file = "secret"\n'
    config = configuration.load(write(tmp_path, text))
    assert config.database_url == "postgresql://u:p%40ss%2Fword@db/n"
    assert "p@ss" not in repr(config)


def test_sender_is_known_by_title_and_address(tmp_path: Path) -> None:
    text = '[[senders]]\nae_title = "MR1"\naddresses = ["10.1.0.0/16"]\n[[senders]]\nae_title = "MR2"\n'
    config = configuration.load(write(tmp_path, text))
    assert config.allows("MR1 ", "10.1.2.3")
    assert not config.allows("MR1", "10.2.0.1")
    assert config.allows("MR2", "192.168.0.1")
    assert not config.allows("OTHER", "10.1.2.3")
    assert configuration.Config().allows("ANYBODY", "10.1.2.3")


def test_certificates_are_found_beside_the_file_that_names_them(tmp_path: Path) -> None:
    text = '[node.tls]\ncertificate_file = "node.crt"\nkey_file = "/etc/node.key"\n'
    tls = configuration.load(write(tmp_path, text)).node.tls
    assert tls is not None
    assert tls.certificate_file == tmp_path / "node.crt"
    assert tls.key_file == Path("/etc/node.key")


@pytest.mark.parametrize("section", ["federation"])
def test_a_setting_that_would_do_nothing_is_refused(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{section}'"):
        configuration.load(write(tmp_path, f"[{section}]\n"))
