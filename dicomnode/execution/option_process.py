"""Options of a pipeline, described and checked in a process of its own.

Options are declared by the pipeline's module, which imports torch, and which for a site's pipeline is foreign code:
neither belongs into the process that receives.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import pipelines
from dicomnode.config import Config, Route
from dicomnode.deployment import pipeline_names
from dicomnode.errors import ConfigError, NodeBusy

__all__ = ["PLACES", "check_route", "describe_pipeline", "main"]

_ANSWER_S = 120.0
_one_at_a_time = threading.Lock()
PLACES = threading.BoundedSemaphore(3)
"""One that is answered, and two that wait."""


def describe_pipeline(pipeline: str, config: Config) -> dict[str, Any]:
    """Return the description of a pipeline as ``pipelines show`` prints it. Raises ConfigError, NodeBusy."""
    found: dict[str, Any] = _ask({"pipeline": pipeline}, config)
    return found


def check_route(route: Route, config: Config) -> None:
    """Check pipeline, model and options of a route as its jobs do. Raises ConfigError that names them, NodeBusy."""
    pipeline_names.check_pipeline(route.pipeline, config)
    pipeline_names.check_model(route.pipeline, route.model, config)
    is_own = route.pipeline in pipelines.MODULES and route.pipeline not in config.pipelines.site
    if route.options or not is_own:  # the defaults of the node's own pipelines are right
        _ask({"pipeline": route.pipeline, "model": route.model, "options": dict(route.options)}, config)


def _ask(request: Mapping[str, Any], config: Config) -> Any:
    command = [sys.executable, "-m", "dicomnode.execution.option_process"]
    if not PLACES.acquire(blocking=False):
        raise NodeBusy("other pipelines are being loaded for their options; try again")
    try:
        with _one_at_a_time:
            done = subprocess.run(
                command, input=pickle.dumps((request, config)), capture_output=True, timeout=_ANSWER_S, check=False
            )
    except subprocess.TimeoutExpired:
        raise NodeBusy(f"the pipeline {request['pipeline']} does not load within {_ANSWER_S:g} s; try again") from None
    finally:
        PLACES.release()
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ConfigError(f"the pipeline {request['pipeline']} cannot be loaded: 'dicomnode check' says why") from None
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer["found"]


def main() -> None:
    """Answer the request on standard input with JSON on standard output."""
    request, config = pickle.loads(sys.stdin.buffer.read())
    out, sys.stdout = sys.stdout, sys.stderr  # what a foreign module prints is no answer
    json.dump(_answer(request, config), out)


def _answer(request: Mapping[str, Any], config: Config) -> dict[str, Any]:
    from dicomnode.deployment import models, pipeline_facts
    from dicomnode.execution.route_options import resolve_options
    from model_zoo.bundle import BundleError

    try:
        if "options" not in request:
            return {"found": pipeline_facts.describe_pipeline(request["pipeline"], config)}
        pipeline = pipeline_names.resolve_pipeline(request["pipeline"], config, request["model"])
        resolve_options(pipeline, request["options"], config.quality)
        models.find_bundle(request["model"] or pipeline.bundle, config)
        return {"found": True}
    except (ConfigError, BundleError) as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main()
