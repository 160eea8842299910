"""Sending data sets to a receiver under test byte for byte, good ones and broken ones."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from dicomnode.config import Config, Peer
from dicomnode.datasets.encoding import OpenFile, encode_file_meta, read_file_meta
from dicomnode.dimse.associations import association
from tests.peers.process import require_program

__all__ = [
    "Encoded",
    "associate",
    "encode_p_data",
    "encode_store_request",
    "kit_files",
    "raw_socket",
    "read_encoded",
    "run_dcmtk",
    "store_all",
]


@dataclass(frozen=True)
class Encoded:
    """Bytes of a data set, with the identifiers for a C-STORE request."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes

    def with_changes(self, **changes: Any) -> Encoded:
        return replace(self, **changes)

    def save(self, path: Path) -> Path:
        """Save the bytes as a Part 10 file, valid or not; return its path."""
        meta = encode_file_meta(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            source_ae_title="TEST",
        )
        path.write_bytes(meta + self.data_set)
        return path


def read_encoded(path: Path) -> Encoded:
    """Return the encoded data set of a file."""
    with path.open("rb") as file:
        transfer_syntax_uid, start = read_file_meta(OpenFile(file.fileno()), os.fstat(file.fileno()).st_size)
        data_set = path.read_bytes()[start:]
    ds = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    return Encoded(ds.SOPClassUID, ds.SOPInstanceUID, transfer_syntax_uid, data_set)


def kit_files(kit: Path) -> list[Path]:
    """Return the DICOM files of the data kit that have the meta information needed for sending."""
    files = []
    for path in sorted((kit / "dicom").rglob("*")):
        if path.is_file() and path.open("rb").read(132)[128:] == b"DICM":
            meta = dcmread(path, stop_before_pixels=True, force=True).file_meta
            if "TransferSyntaxUID" in meta and "MediaStorageSOPClassUID" in meta:
                files.append(path)
    return files


@contextmanager
def associate(
    port: int, objects: Sequence[Encoded], *, ae_title: str = "SENDER", timeout_s: float = 30
) -> Iterator[Association]:
    """Open an association that proposes Verification and the contexts of the data sets."""
    pairs = dict.fromkeys((each.sop_class_uid, each.transfer_syntax_uid) for each in objects)
    contexts = [build_context(Verification), *(build_context(UID(kind), UID(syntax)) for kind, syntax in pairs)]
    peer = Peer(name="receiver", ae_title="DICOMNODE", port=port)
    with association(peer, contexts, calling_aet=ae_title, timeout_s=timeout_s) as assoc:
        yield assoc


def store_all(port: int, objects: Sequence[Encoded], folder: Path, *, ae_title: str = "SENDER") -> list[Dataset]:
    """Send the data sets; return their responses in order."""
    folder.mkdir(exist_ok=True)
    with associate(port, objects, ae_title=ae_title) as assoc:
        return [
            assoc.send_c_store(each.save(folder / f"{number}.dcm"), msg_id=number % 65535 + 1)
            for number, each in enumerate(objects)
        ]


def run_dcmtk(program: str, config: Config, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a client of DCMTK against the receiver."""
    command = [require_program(f"/usr/bin/{program}", "dcmtk"), "-aec", config.node.ae_title, *arguments[:-1]]
    command += ["127.0.0.1", str(port), *([arguments[-1]] if arguments[-1:] != ("",) else [])]
    environment = os.environ | {"TCP_NODELAY": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def encode_p_data(context_id: int, *fragments: tuple[int, bytes]) -> bytes:
    """Return a P-DATA-TF PDU of values, each a message control header and a fragment (PS3.8 9.3.5)."""
    values = [struct.pack(">LBB", len(data) + 2, context_id, control) + data for control, data in fragments]
    return struct.pack(">BBL", 4, 0, sum(map(len, values))) + b"".join(values)


def encode_store_request(each: Encoded, message_id: int = 1) -> bytes:
    """Return the command set of a C-STORE-RQ in Implicit VR Little Endian (PS3.7 9.3.1.1)."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    def uid(text: str) -> bytes:
        return text.encode() + b"\0" * (len(text) % 2)

    body = element(0x0002, uid(each.sop_class_uid)) + element(0x0100, b"\1\0")
    body += element(0x0110, struct.pack("<H", message_id)) + element(0x0700, b"\0\0")
    body += element(0x0800, b"\0\0") + element(0x1000, uid(each.sop_instance_uid))
    return element(0x0000, struct.pack("<L", len(body))) + body


def raw_socket(assoc: Association) -> socket.socket:
    """Return the socket of the association, to send bytes that pynetdicom would not send."""
    sock: socket.socket = assoc.dul.socket.socket
    return sock
