"""Search of a destination for what was delivered to it: by C-FIND, or by WADO-RS (PS3.18 10.4), instance by instance.

C-FIND answers from the destination's database. WADO-RS has it read the headers of each instance that it stored.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Collection
from typing import TYPE_CHECKING

from dicomnode.config.secrets import read_secret
from dicomnode.dimse import queries
from dicomnode.errors import ConfigError, PeerError, PeerRefused, PeerUnreachable
from dicomnode.http_requests import describe_error, host_of, make_opener

if TYPE_CHECKING:
    from dicomnode.config import Peer
    from dicomnode.config.node import NodeConfig

__all__ = ["MOST_BYTES", "PIECE_BYTES", "find_instances"]

_log = logging.getLogger(__name__)

_ABSENT = (404, 410)
MOST_BYTES = 32 << 20
"""Longest metadata that are read of one instance; those of thousands of frames have megabytes."""
PIECE_BYTES = 64 << 10
_MOST_FAULTS = 10
"""Refusals one after another after which a search ends: the destination refuses all, perhaps slowly."""
_SOP_INSTANCE_UID = "00080018"


def find_instances(peer: Peer, node: NodeConfig, series: tuple[str, str], uids: Collection[str]) -> set[str]:
    """Return those SOP Instance UIDs of a series (Study and Series Instance UID) that the destination holds.

    Raises PeerError where nothing was found and the destination refused, or gave no answer.
    """
    if peer.verify == "wado-rs":
        return _find_by_wado(peer, node, series, uids)
    keys = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), series, strict=True))
    matches = queries.find(
        peer, keys, level="IMAGE", calling_aet=node.ae_title, timeout_s=node.network_timeout_s, tls=node.tls
    )
    return {str(match.get("SOPInstanceUID", "")) for match in matches} & set(uids)


def _find_by_wado(peer: Peer, node: NodeConfig, series: tuple[str, str], uids: Collection[str]) -> set[str]:
    if peer.dicomweb_url is None:
        raise PeerRefused(f"peer {peer.name} has no dicomweb_url")
    try:
        opener, headers = make_opener(peer.dicomweb_ca_file), _make_headers(peer)
    except (ConfigError, OSError) as error:  # of a file that may be corrected
        raise PeerUnreachable(f"peer {peer.name}: no WADO-RS: {error}") from None
    root = f"{peer.dicomweb_url.rstrip('/')}/studies/{series[0]}/series/{series[1]}/instances"
    found, faults = set[str](), 0
    fault: PeerError | None = None
    for uid in sorted(uids):
        request = urllib.request.Request(f"{root}/{uid}/metadata", headers=headers)
        try:
            if _has_metadata(peer, opener, request, uid, node.network_timeout_s):
                found.add(uid)
            faults = 0
        except PeerRefused as error:  # of this instance: the others may be there
            fault, faults = error, faults + 1
        except PeerUnreachable as error:
            fault, faults = error, _MOST_FAULTS
        if faults >= _MOST_FAULTS:
            break
    if fault is not None and not found:
        raise fault
    if fault is not None:
        _log.warning("%s", fault)
    return found


def _make_headers(peer: Peer) -> dict[str, str]:
    headers = {"Accept": "application/dicom+json", "User-Agent": "dicomnode"}
    if peer.dicomweb_token_file is not None:
        token = read_secret(peer.dicomweb_token_file, f"peers.{peer.name}.dicomweb_token_file")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _has_metadata(
    peer: Peer, opener: urllib.request.OpenerDirector, request: urllib.request.Request, uid: str, timeout_s: float
) -> bool:
    """Return whether the destination returns the metadata of the instance. Raises PeerError."""
    host = host_of(request.full_url)
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            content = _read_content(answer)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _ABSENT:
            return False
        raise PeerRefused(f"peer {peer.name}: WADO-RS at {host} answers {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise PeerUnreachable(f"peer {peer.name}: WADO-RS at {host}: {describe_error(error)}") from None
    if _read_uid(content) != uid:
        raise PeerRefused(f"peer {peer.name}: WADO-RS at {host} answers with no metadata of the instance")
    return True


def _read_content(answer: http.client.HTTPResponse) -> bytes:
    """Return what the destination sends, which is not whole where it is too long. Raises TimeoutError."""
    content = bytearray()
    while len(content) < MOST_BYTES and (piece := answer.read1(PIECE_BYTES)):
        content += piece
    return bytes(content)


def _read_uid(content: bytes) -> str:
    """Return the SOP Instance UID of DICOM JSON of one instance, "" where it is none."""
    try:
        (instance,) = json.loads(content)
        (uid,) = instance[_SOP_INSTANCE_UID]["Value"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return str(uid)
