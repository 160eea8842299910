"""Names and expressions that a bundle's configuration may hold: common ones pass, code is refused by place and text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomnode import cli
from dicomnode.config import Config
from dicomnode.config.models import ModelsConfig
from dicomnode.config.node import NodeConfig
from dicomnode.deployment import models
from model_zoo import expressions, installing, monai_config, monai_rules, registry, smoke
from model_zoo.bundle import BundleError, BundleFacts
from model_zoo.installing import Policy
from tests.monai_bundles import transform, write_spleen_bundle
from tests.peers import write_config
from tests.prior_bundle import write_prior_bundle

HARMLESS = (
    "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
    "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))",
    "$@bundle_root + '/eval'",
    "$numpy.float32",
    "$[0] + [int(n) for n in range(3)]",
    "$lambda x: (x.argmax(dim=0, keepdim=True) > 0).float()",
    "@preprocessing",
    "a plain word, even with an @ in it",
)
HARMFUL = {
    "$import os": "an import or a statement",
    "$__import__('os').system('touch WITNESS')": "the attribute 'system'",
    "$().__class__.__bases__[0].__subclasses__()": "the attribute '__subclasses__'",
    "$getattr(torch, 'load')('WITNESS')": "a call of what an expression gives",
    "$eval('1')": "a call of eval",
    "$open('WITNESS', 'w')": "a call of open",
    "$torch.load('model.pt')": "torch.load",
    "$torch.hub.load('a', 'b')": "torch.hub.load",
    "$numpy.load('a.npy', allow_pickle=True)": "numpy.load",
    "$monai.bundle.download('x')": "the attribute 'download'",
    "$@network_def('x')": "a call of a reference",
    "$(lambda: 1)()": "a call of what an expression gives",
    "$(x := 1)": "NamedExpr",
    "$f'{1}'": "JoinedStr",
    "$'{0.__class__}'.format(1)": "the attribute 'format'",
    "$lambda torch: torch.load('x')": "the variable 'torch'",
    "$9 ** 9 ** 9": "Pow",
    "$[1, 2][0 # (open('WITNESS', 'w'))\n]": "a call of open",
    "$'@or'": "a reference within quotation marks",
    "%/etc/passwd#a": "a macro",
    "@##network": "a relative reference",
}


def write_bundle(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    source = write_spleen_bundle(folder / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return source


def append_transform(**arguments: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["preprocessing"]["transforms"].append(transform(**arguments))


def install(source: Path, root: Path, policy: Policy = Policy()) -> BundleFacts:
    with installing.stage_bundle(source, root, policy) as staged:
        smoke.run(staged.facts, "cpu", trusted_code=staged.trusted_code)
        return staged.commit()


@pytest.mark.parametrize("text", HARMLESS)
def test_what_bundles_commonly_say_is_evaluated(text: str) -> None:
    assert expressions.find_violation(text) == ""


@pytest.mark.parametrize("text", HARMFUL)
def test_what_could_reach_more_than_numbers_is_not(text: str) -> None:
    assert HARMFUL[text] in expressions.find_violation(text)


@pytest.mark.parametrize("text", HARMFUL)
def test_installing_refuses_it_naming_the_key_and_the_words_and_nothing_runs(text: str, tmp_path: Path) -> None:
    text = text.replace("WITNESS", str(tmp_path / "witness"))
    source = write_bundle(tmp_path / "source", append_transform(name="Lambdad", func=text))
    with pytest.raises(BundleError) as refused:
        install(source, tmp_path / "models")
    message = str(refused.value)
    assert "preprocessing.transforms[6].func" in message
    assert repr(text)[1:-1] in message
    assert monai_rules.configuration_digest(source) in message, "what to write where the site allows it"
    assert not (tmp_path / "witness").exists()
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "monai.bundle.run", "monai.apps.download_and_extract", "subprocess.run",
     "monai.transforms.utils.x.TorchVisiond", "TorchVisiond", "scripts.transforms.Mine", "SaveImages", "torch.load"],
)  # fmt: skip
def test_a_class_that_is_none_of_the_known_is_refused_by_its_name(target: str, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", append_transform(name=target))
    with pytest.raises(BundleError, match=r"preprocessing\.transforms\[6\]\._target_ = .* is none of the transforms"):
        install(source, tmp_path / "models")


@pytest.mark.parametrize("directive", ["_mode_", "_requires_"])
def test_a_directive_that_would_run_something_else_is_refused(directive: str, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", append_transform(name="EnsureTyped", **{directive: "debug"}))
    with pytest.raises(BundleError, match=f"holds '{directive}', a directive that is not followed"):
        install(source, tmp_path / "models")


def test_what_is_referred_to_is_looked_at_and_what_is_not_used_is_not(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["window"] = "$open('x')"
        content["run"] = ["$__import__('os').abort()"]
        content["preprocessing"]["transforms"][4]["a_min"] = "@window"

    with pytest.raises(BundleError, match=r"window = .* holds a call of open"):
        install(write_bundle(tmp_path / "a", change), tmp_path / "models")

    def unused(content: dict[str, Any]) -> None:
        content["run"] = ["$__import__('os').abort()"]

    install(write_bundle(tmp_path / "b", unused), tmp_path / "models")


def test_a_configuration_that_was_changed_on_the_disk_is_looked_at_again_when_it_runs(tmp_path: Path) -> None:
    config = Config(node=NodeConfig(data_dir=tmp_path / "data"), path=tmp_path / "node.toml")
    source = write_bundle(tmp_path / "source", append_transform(name="Lambdad", func="$lambda x: open('x')"))
    installed_folder = config.models_dir / "zoo"
    with installing.stage_bundle(write_spleen_bundle(tmp_path / "good" / "zoo"), config.models_dir, Policy()) as staged:
        staged.commit()
    facts = models.find_bundle("zoo", config)
    (facts.path / "installed.json").unlink()  # as if somebody had copied the folder by hand
    (facts.path / "configs" / "inference.json").write_bytes((source / "configs" / "inference.json").read_bytes())
    assert facts.path.is_relative_to(installed_folder)
    with pytest.raises(BundleError, match="holds a call of open"):
        monai_config.build_model_steps(models.load("zoo", (), config))


def test_a_site_allows_code_by_name_and_digest_until_a_letter_of_it_changes(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", append_transform(name="Lambdad", func="$lambda x: x.mul(1.0)"))
    digest = monai_rules.configuration_digest(source)
    with pytest.raises(BundleError, match="the attribute 'mul'"):
        install(source, tmp_path / "refused", Policy(trusted_code={"zoo": "0" * 64}))
    facts = install(source, tmp_path / "data" / "models", Policy(trusted_code={"zoo": digest}))

    def make_config(**trusted: str) -> Config:
        return Config(
            node=NodeConfig(data_dir=tmp_path / "data"),
            models=ModelsConfig(trusted_code=trusted),
            path=tmp_path / "node.toml",
        )

    assert models.load("zoo", (), make_config(zoo=digest)).trusted_code
    assert monai_config.build_model_steps(models.load("zoo", (), make_config(zoo=digest))).image == "image"
    with pytest.raises(BundleError, match="the attribute 'mul'"):
        monai_config.build_model_steps(models.load("zoo", (), make_config()))
    path = facts.path / "configs" / "inference.json"
    path.write_text(path.read_text().replace("mul(1.0)", "mul(2.0)"))
    (facts.path / "installed.json").unlink()
    with pytest.raises(BundleError, match="the attribute 'mul'"):
        monai_config.build_model_steps(models.load("zoo", (), make_config(zoo=digest)))


def test_a_reference_is_what_monai_takes_for_one() -> None:
    from monai.bundle.reference_resolver import ReferenceResolver

    assert expressions.REFERENCE.pattern == ReferenceResolver.id_matcher.pattern
    for text in HARMLESS:
        assert sorted(set(expressions.find_references(text))) == sorted(ReferenceResolver.match_refs_pattern(text))


def test_every_known_name_is_a_class_of_monais() -> None:
    import monai.inferers
    import monai.transforms

    for name in sorted(monai_rules.KNOWN_TRANSFORMS):
        assert any(hasattr(monai.transforms, each) for each in (name, f"{name}d")), name
    assert all(hasattr(monai.inferers, name) for name in monai_rules.KNOWN_INFERERS)


def test_references_and_arithmetic_in_the_networks_definition_stand_for_their_values(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        definition = content["network_def"]
        content |= {"label_names": {"background": 0, "spleen": 1}, "size": [32, 32, 32], "dims": "$len(@size)"}
        definition |= {"out_channels": "$len(@label_names)", "spatial_dims": "@dims"}

    facts = install(write_bundle(tmp_path / "source", change), tmp_path / "models")
    assert registry.load_from(facts).network is not None


def test_a_definition_of_plain_values_is_loaded_without_importing_monai(tmp_path: Path) -> None:
    folder = write_prior_bundle(tmp_path / "prior", "1.0.0")
    code = (
        "import sys; from pathlib import Path; from model_zoo import registry\n"
        "registry.load_from(registry.read_facts(Path(sys.argv[1])))\n"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("value", ["$open('x')", "$torch.load('x')", "@preprocessing", "@nothing"])
def test_anything_else_in_the_networks_definition_is_refused(value: str, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["network_def"]["out_channels"] = value

    with pytest.raises(BundleError, match="network_def holds"):
        install(write_bundle(tmp_path / "source", change), tmp_path / "models")


def test_without_monai_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_spleen_bundle(tmp_path / "source" / "zoo")
    for name in [each for each in sys.modules if each.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(BundleError, match="pip install monai"):
        install(source, tmp_path / "models")
    content = json.loads((source / "configs" / "inference.json").read_text())
    with pytest.raises(BundleError, match=r"zoo@1 needs MONAI, which is not installed here: pip install monai"):
        monai_config.build_steps("zoo@1", content, "cpu", trusted=False)


def test_the_command_says_what_to_write_where_the_site_allows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_bundle(tmp_path / "source", append_transform(name="Lambdad", func="$lambda x: x.mul(1.0)"))
    digest = monai_rules.configuration_digest(source)
    refusing = write_config(tmp_path / "refusing")
    assert cli.main(["--config", str(refusing), "models", "install", str(source), "--yes"]) == 1
    printed = capsys.readouterr().err
    assert f'[models] trusted_code = {{ "zoo" = "{digest}" }}' in " ".join(printed.split())
    allowing = write_config(tmp_path / "allowing", models={"trusted_code": {"zoo": digest}})
    assert cli.main(["--config", str(allowing), "models", "install", str(source), "--yes"]) == 0
    assert "allowed by this site" in capsys.readouterr().out
