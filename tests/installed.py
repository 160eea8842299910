"""The use of small bundles that bear the names of shipped ones, which no pipeline uses before they are deployed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pipelines
from db import deployments
from db import engine as engines
from db.states import DeploymentMode
from dicomnode.config import Config, load
from dicomnode.execution.processing import Task
from model_zoo import registry
from tests import databases

__all__ = ["deploy_installed", "pin_installed"]


def deploy_installed(path: Path) -> Path:
    """Deploy the installed bundles of the node of this node.toml for the node's own pipelines; return the path."""
    config = load(path)
    databases.prepare(config)
    installed = {facts.name: facts for facts in registry.list_bundles(config.models_dir)}
    engine = engines.connect(config.database_url)
    with engines.sessions(engine).begin() as session:
        for pipeline, bundle in pipelines.BUNDLES.items():
            if facts := installed.get(bundle):
                deployments.deploy(
                    session, pipeline=pipeline, name=facts.name, version=facts.version, digest=facts.digest,
                    mode=DeploymentMode.CURRENT, who="a test", now=datetime.now(UTC),
                )  # fmt: skip
    engine.dispose()
    return path


def pin_installed(task: Task, config: Config) -> Task:
    """Return the task with the installed bundles as its model and helper models."""
    installed = {facts.name: f"{facts.name}@{facts.version}" for facts in registry.list_bundles(config.models_dir)}
    return replace(task, model=installed.get(pipelines.BUNDLES[task.pipeline], ""), helper_models=installed)
