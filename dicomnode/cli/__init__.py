"""The command line: one file per noun, imported when its command runs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.errors import NodeError

__all__ = ["COMMANDS", "explain_error", "main"]

COMMANDS = {
    "init": ("dicomnode.cli.init", "init", "Write a commented node.toml and make the folders it names."),
    "check": ("dicomnode.cli.check", "check", "See whether anything would stop the node from working."),
    "serve": ("dicomnode.cli.serve", "serve", "Receive, route, run and deliver, until told to stop."),
    "work": ("dicomnode.cli.serve", "work", "Take jobs until told to stop."),
    "status": ("dicomnode.cli.status", "status", "Studies, jobs and deliveries by state; disk; last errors."),
    "send": ("dicomnode.cli.send", "send", "Send files and folders to a peer by C-STORE."),
    "run": ("dicomnode.cli.run", "run", "Run a pipeline on DICOM or NIfTI files, without a node."),
    "deidentify": ("dicomnode.cli.deidentify", "deidentify", "Copy files without what identifies the patient."),
    "export": ("dicomnode.cli.export", "export", "Write a study and its results as a BIDS dataset."),
    "studies": ("dicomnode.cli.studies", "app", "List, show, explain, close, route and replay studies."),
    "routes": ("dicomnode.cli.routes", "app", "Count what a route would take, try it on a study, add it."),
    "jobs": ("dicomnode.cli.jobs", "app", "List, show, retry, cancel, release and discard jobs."),
    "worklist": ("dicomnode.cli.worklist", "app", "List, show and cancel workitems (UPS)."),
    "peers": ("dicomnode.cli.peers", "app", "List, echo, search and fetch from peers."),
    "notifications": ("dicomnode.cli.notifications", "app", "List notifications, and send one as a test."),
    "kspace": ("dicomnode.cli.kspace", "app", "Carry ISMRMRD/MRD k-space in DICOM Raw Data."),
    "sinogram": ("dicomnode.cli.sinogram", "app", "Carry projections of CT in DICOM Raw Data."),
    "pipelines": ("dicomnode.cli.pipelines", "app", "List pipelines; show inputs, options and contract of one."),
    "models": ("dicomnode.cli.models", "app", "Bundles: install, verify, deploy, compare, roll back."),
    "quarantine": ("dicomnode.cli.quarantine", "app", "What was not accepted: list, show, release, discard."),
    "storage": ("dicomnode.cli.storage", "app", "Files against rows: digests, orphans."),
    "backup": ("dicomnode.cli.backup", "backup", "Back up a node that may run meanwhile."),
    "restore": ("dicomnode.cli.backup", "restore", "Restore a backup into an empty data folder."),
    "audit": ("dicomnode.cli.audit", "app", "The audit trail: verify it, export a study's part."),
    "accounts": ("dicomnode.cli.accounts", "app", "People and programs that may use the web, with their roles."),
    "viewer": ("dicomnode.cli.viewer", "app", "Install the viewer that the node serves."),
    "train": ("dicomnode.cli.train", "train", "Train a model of the zoo and write it as a bundle."),
    "learn": ("dicomnode.cli.learn", "app", "Train at night on the cases that people decided on."),
    "evaluate": ("dicomnode.cli.evaluate", "evaluate", "Make the tables of a model card again."),
    "data": ("dicomnode.cli.data", "app", "The data kit of simulations and tests: list it, check it."),
    "demo": ("dicomnode.cli.demo", "demo", "The whole path of one study, on loopback."),
}
"""By name: the module, its function or Typer app, and a line of help."""

_GROUPS = {
    "Run a node": ("init", "check", "serve", "work", "status", "accounts", "demo"),
    "Studies and results": ("studies", "routes", "jobs", "worklist", "quarantine", "notifications", "audit"),
    "Send, fetch and convert": ("send", "peers", "kspace", "sinogram", "deidentify", "export"),
    "Pipelines and models": ("run", "pipelines", "models", "train", "learn", "evaluate", "data"),
    "Maintenance": ("storage", "backup", "restore", "viewer"),
}
"""The commands by the heading under which ``--help`` lists them."""

_COMPLETED_WORDS = "_TYPER_COMPLETE_ARGS"
"""The environment variable in which the shell passes a command line that it completes."""

_INSTALL = "install dicomnode with all its dependencies, or run the command on a host that runs jobs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return 0 when done, 1 after a failure, with one line on stderr, 2 for wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = _find_command(words or os.environ.get(_COMPLETED_WORDS, "").split()[1:])
    try:
        _build_app(command)(words, prog_name="dicomnode")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(f"dicomnode: {explain_error(error, command)}", file=sys.stderr)
        if os.environ.get("DICOMNODE_TRACEBACK"):
            traceback.print_exception(error)
        return 1
    return 0


def _build_app(command: str | None) -> typer.Typer:
    app = typer.Typer(
        name="dicomnode",
        help="A DICOM/PACS-integrated clinical research node.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_set_root_options)
    for group, names in _GROUPS.items():
        for name in names:
            _add_command(app, name, group, is_loaded=name == command)
    return app


def _add_command(app: typer.Typer, name: str, group: str, *, is_loaded: bool) -> None:
    module, attribute, help_line = COMMANDS[name]
    content = getattr(import_module(module), attribute) if is_loaded else _refuse_unloaded
    if isinstance(content, typer.Typer):
        app.add_typer(content, name=name, help=help_line, no_args_is_help=True, rich_help_panel=group)
    else:
        app.command(name, help=help_line, rich_help_panel=group)(content)


def _print_version(requested: bool) -> None:
    from dicomnode.installation import read_version

    if requested:
        print(f"dicomnode {read_version()}")
        raise typer.Exit


def _set_root_options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="DICOMNODE_CONFIG", help="Configuration file.", show_default="./node.toml"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    ctx.obj = config or Path("node.toml")


def _refuse_unloaded() -> None:
    raise NodeError("this command was not loaded")


def _find_command(arguments: Sequence[str]) -> str | None:
    """Return the first argument that is neither an option of the root nor its value, or None."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return None


def explain_error(error: Exception, command: str | None) -> str:
    """Return one line: the fault, its place, the remedy. The text of an unforeseen error may name a patient."""
    from sqlalchemy.exc import DBAPIError

    from db.jobs import LeaseLost
    from db.states import InvalidTransition
    from model_zoo.bundle import BundleError
    from pipelines.contract import Refused

    if isinstance(error, NodeError | InvalidTransition | LeaseLost | Refused | BundleError):
        return " ".join(str(error).split())
    if isinstance(error, DBAPIError):
        return f"the database does not answer or refuses ({type(error).__name__}): run 'dicomnode check'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"'dicomnode {command}' needs {package}, which is not installed on this host: {_INSTALL}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'a file or address'}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{type(error).__name__} in {place}; DICOMNODE_TRACEBACK=1 shows where it came from"
