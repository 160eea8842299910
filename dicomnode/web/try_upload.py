"""POST /try/nifti: a NIfTI file becomes a DICOM series, which is received as if it had been sent.

DICOM files of the page /try go to STOW-RS. ``Nifti-Facts``: a header with JSON, percent-encoded: name, modality, and
the content of the JSON file beside the image.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from db.studies import Sender
from dicomnode import decoding
from dicomnode.config.spool import SpoolConfig
from dicomnode.errors import InputRefused, NodeBusy, OutOfSpace, RefusedObject
from dicomnode.ingest.files import receive_files
from dicomnode.ingest.group_commit import Ledger
from dicomnode.nifti import images, uploads
from dicomnode.storage import spool
from dicomnode.web import person
from dicomnode.web.context import WebContext

__all__ = ["SENDER", "add_routes", "take_turn"]

SENDER = "NIFTI-UPLOAD"
"""Sender of instances that were made of NIfTI files, in place of an AE title."""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,120}", re.ASCII)
_CHECK_EVERY = 16 << 20
"""Bytes between two looks at the free space."""
_MODALITIES = ("", "MR", "PT", "CT")


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the route that the page sends NIfTI files to."""
    config = context.config
    ledger = Ledger(config.spool_dir, context.sessions, context.now)
    longest, turn = int(config.web.max_store_gb * 1e9), threading.Lock()

    @routes.post("/try/nifti")
    async def receive(request: Request) -> Response:
        facts = _read_facts(request)
        sender = Sender(SENDER, request.client.host if request.client else "", person.find_account())
        with take_turn(turn), spool.open_folder(config.spool_dir) as folder:
            path = folder / facts["name"]
            try:
                await _save(request, path, longest, config.spool)
                uids = await run_in_threadpool(_convert_and_receive, ledger, config.spool, path, facts, sender)
            except OutOfSpace as error:
                raise HTTPException(503, str(error)) from None
            except (InputRefused, RefusedObject, NodeBusy) as error:
                raise HTTPException(409, str(error)) from None
        return JSONResponse({"studies": sorted(uids)})


def _read_facts(request: Request) -> dict[str, Any]:
    """Return name, modality and sidecar of the file. Raises 400."""
    try:
        facts = json.loads(unquote(request.headers.get("nifti-facts", ""), errors="strict"))
        name, modality, sidecar = str(facts["name"]), str(facts.get("modality", "")), facts.get("sidecar")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HTTPException(400, "the header Nifti-Facts must hold JSON with the name of the file") from None
    if not _NAME.fullmatch(name) or not images.is_nifti(Path(name)):
        raise HTTPException(400, "the name must end with .nii or .nii.gz and hold letters, digits, '.', '_', '+', '-'")
    if modality not in _MODALITIES or not isinstance(sidecar, Mapping | None):
        raise HTTPException(400, "the modality is MR, PT or CT, and the JSON file holds an object")
    return {"name": name, "modality": modality, "sidecar": sidecar}


@contextmanager
def take_turn(turn: threading.Lock) -> Iterator[None]:
    """Let one file in at a time. Raises 503."""
    if not turn.acquire(blocking=False):
        raise HTTPException(503, "another NIfTI file is being received; send this one again in a while")
    try:
        yield
    finally:
        turn.release()


async def _save(request: Request, path: Path, longest: int, limits: SpoolConfig) -> None:
    """Write the body to a file. Raises 413 where it is longer than STOW-RS takes, OutOfSpace while it grows."""
    spool.check_space(path.parent, limits)
    total, checked = 0, 0
    with path.open("wb") as file:
        async for piece in request.stream():
            total += len(piece)
            if total > longest:
                raise HTTPException(413, f"a file may be {longest} bytes long ([web] max_store_gb)")
            if total - checked > _CHECK_EVERY:
                spool.check_space(path.parent, limits)
                checked = total
            await run_in_threadpool(file.write, piece)


def _convert_and_receive(
    ledger: Ledger, limits: SpoolConfig, path: Path, facts: Mapping[str, Any], sender: Sender
) -> set[str]:
    if facts["sidecar"] is not None:
        path.with_name(f"{images.strip_suffix(path)}.json").write_text(json.dumps(facts["sidecar"]))
    series_dir = path.with_name("series")
    decoding.run(uploads.convert, path, facts["modality"], series_dir)
    return receive_files(ledger, limits, sorted(series_dir.iterdir()), sender)
