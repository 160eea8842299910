"""The whole path of one study on loopback: a node, a small PACS (a second node, no workers), k-space through both.

Everything happens over the wire and through the ordinary commands; the results are read back from the PACS.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicomnode import mrd
from dicomnode.config import Peer
from dicomnode.dimse import peers
from dicomnode.errors import NodeError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.mrd import MRD

__all__ = ["Demo", "Node", "ProgressCallback", "StoredResult", "leave_running"]

START_S = 60.0
FINISH_S = 900.0
SIMULATED_HEAD = "simulated head of ellipsoids"
RESULTS = 5
"""Clean images, labelled images, standard deviation, low-confidence region, report."""

ProgressCallback = Callable[[float, str], None]

NODE_TOML = """\
[node]
ae_title = "{ae_title}"
host = "127.0.0.1"
port = {port}
data_dir = "{data_dir}"

[completion]
quiet_s = 2.0

[web]
port = 0
"""

ROUTE_TOML = """
[[peers]]
name = "pacs"
ae_title = "DEMOPACS"
port = {pacs_port}

[[routes]]
name = "kspace"
pipeline = "mri_reconstruction"
match = {{ Modality = "MR", SOPClassUID = "1.2.840.10008.5.1.4.1.1.66" }}
destinations = ["pacs"]
"""


@dataclass(frozen=True)
class Node:
    """A running ``dicomnode serve``: its addresses, its configuration file, its process."""

    ae_title: str
    port: int
    config_file: Path
    process: subprocess.Popen[str]
    web: str

    @property
    def peer(self) -> Peer:
        """The node as a peer to send to."""
        return Peer(name=self.ae_title.lower(), ae_title=self.ae_title, port=self.port)


@dataclass(frozen=True)
class StoredResult:
    """A result object that the PACS holds."""

    sop_class_uid: str
    series_description: str
    path: Path


class Demo:
    """The steps of the demonstration below one folder."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self.folder, self._stop = folder, stop

    def make_kspace(self) -> tuple[MRD, str]:
        """Return real k-space of the data kit, or else that of a simulated head, with a sentence on its origin."""
        from model_zoo.data_kit import data_root

        try:
            source = data_root() / "kspace" / "sigpy-brain-8ch" / "cartesian_ksp.npy"
        except FileNotFoundError:
            source = None
        if source is not None and source.is_file():
            return mrd.convert(source), "real 8-channel brain k-space, 12.4 % of its samples acquired (R = 8)"
        return _simulate_kspace(), f"no data kit on this machine: 8-channel k-space of a {SIMULATED_HEAD} (R = 4)"

    def write_raw_data(self, kspace: MRD) -> Path:
        """Write the k-space as an MRD file and, around it, a DICOM Raw Data file; return the latter."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "kspace.h5"
        file.unlink(missing_ok=True)
        mrd.write(kspace, file)
        facts = {"PatientName": "DEMO^KSPACE", "PatientID": "DEMO", "StudyDescription": "dicomnode demo"}
        ds = mrd.wrap(file.read_bytes(), now=datetime.now(UTC).astimezone(), facts=facts)
        wrapped = self.folder / "kspace.dcm"
        ds.save_as(wrapped, enforce_file_format=True)
        return wrapped

    @contextmanager
    def run_nodes(self, *, keep: bool = False) -> Iterator[tuple[Node, Node]]:
        """Start the node and its PACS. Stop them at the end, unless ``keep`` is set and no error occurred."""
        nodes: list[Node] = []
        try:
            pacs = _start_node(self.folder / "pacs", "DEMOPACS", workers=0)
            nodes.append(pacs)
            self._raise_if_stopped()
            node = _start_node(
                self.folder / "node", "DICOMNODE", workers=1, more=ROUTE_TOML.format(pacs_port=pacs.port)
            )
            nodes.append(node)
            self._raise_if_stopped()
            yield node, pacs
            self._raise_if_stopped()
        except BaseException:
            keep = False
            raise
        finally:
            for running in reversed(nodes):
                leave_running(running) if keep else _stop_node(running)

    def send(self, file: Path, node: Node) -> None:
        """Send the file to the node by C-STORE. Raises NodeError where it is refused."""
        for result in peers.store(node.peer, [file], calling_aet="DEMOSCANNER", on_result=lambda _: None):
            if not result.is_stored:
                raise NodeError(f"the demo's node refused the k-space: {result.text}")

    def wait_for_results(
        self, node: Node, pacs: Node, report_progress: ProgressCallback, *, limit_s: float = FINISH_S
    ) -> list[StoredResult]:
        """Follow the study through the node until the PACS holds every result. Raises NodeError after ``limit_s``."""
        deadline = time.monotonic() + limit_s
        with _open_database(node) as ours, _open_database(pacs) as theirs:
            while time.monotonic() < deadline:
                results = _list_results(theirs, pacs)
                if len(results) == RESULTS:
                    report_progress(1.0, "results in the PACS")
                    return results
                report_progress(*_find_progress(ours))
                self._stop.wait(0.3)
                self._raise_if_stopped()
        raise NodeError(
            f"demo: no complete result in the PACS after {limit_s:.0f} s; see the logs beside the two node.toml"
        )

    def _raise_if_stopped(self) -> None:
        """Raise KeyboardInterrupt between the steps: one raised in a signal handler may be lost."""
        if self._stop.is_set():
            raise KeyboardInterrupt


def _find_progress(sessions: sessionmaker[Session]) -> tuple[float, str]:
    """Return the share of the work that the node has done on the demo's only study, and the step it is at."""
    from sqlalchemy import select

    from db.models import Job, Study
    from db.states import JobState

    with sessions() as session:
        job = session.scalars(select(Job)).first()
        study = session.scalars(select(Study)).first()
        if job is None:
            return 0.0, f"study {study.state.value}" if study else "sending"
        if job.state in (JobState.DEAD, JobState.REFUSED, JobState.CANCELLED, JobState.HELD):
            raise NodeError(f"demo: the job is {job.state.value}: {job.reason}")
        if job.state is JobState.DONE:
            return 0.97, "delivering"
        return 0.95 * job.progress, f"{job.pipeline}: {job.step or job.state.value}"


def _list_results(sessions: sessionmaker[Session], pacs: Node) -> list[StoredResult]:
    from sqlalchemy import select

    from db.models import Instance
    from dicomnode import config

    spool = config.load(pacs.config_file).spool_dir
    with sessions() as session:
        return [
            StoredResult(
                row.sop_class_uid, str(row.series.attributes.get("SeriesDescription", "")), spool / row.relative_path
            )
            for row in session.scalars(select(Instance).order_by(Instance.id))
        ]


@contextmanager
def _open_database(node: Node) -> Iterator[sessionmaker[Session]]:
    from db import engine
    from dicomnode import config

    database = engine.connect(config.load(node.config_file).database_url)
    try:
        yield engine.readers(database)
    finally:
        database.dispose()


def _start_node(folder: Path, ae_title: str, *, workers: int, more: str = "") -> Node:
    """Run ``dicomnode serve`` on a free loopback port; return once it accepts associations."""
    folder.mkdir(parents=True, exist_ok=True)
    config_file, log_file = folder / "node.toml", folder / "node.log"
    config_file.write_text(NODE_TOML.format(ae_title=ae_title, port=0, data_dir=(folder / "data").as_posix()) + more)
    command = [sys.executable, "-m", "dicomnode", "--config", str(config_file), "serve", "--workers", str(workers)]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    line = process.stdout.readline() if process.stdout else ""
    port = re.search(r":(\d+)\b", line)
    if not line.startswith("ready") or port is None:
        process.kill()
        raise NodeError(f"demo: {ae_title} did not start; its log is {log_file}")
    web = re.search(r"web (\S+/),", line)
    return Node(ae_title, int(port.group(1)), config_file, process, web.group(1) if web else "")


def leave_running(node: Node) -> None:
    """Let the node outlive this program, without Python's warning that nobody waits for it."""
    if node.process.stdout:
        node.process.stdout.close()
    warnings.filterwarnings("ignore", f"subprocess {node.process.pid} is still running", ResourceWarning)


def _stop_node(node: Node) -> None:
    if node.process.stdout:
        node.process.stdout.close()
    node.process.send_signal(signal.SIGTERM)
    try:
        node.process.wait(START_S)
    except subprocess.TimeoutExpired:
        os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()


def _simulate_kspace() -> MRD:
    """Return one axial slice of a simulated head, received by eight simulated coils, undersampled in two directions.

    The head consists of ellipsoids (``model_zoo.simulate.heads``), in T1 contrast with the texture of tissue: it needs
    neither a download nor a package beyond the core.
    """
    import torch

    from model_zoo import masks
    from model_zoo.operators import centred_fft
    from model_zoo.simulate.coils import compute_sensitivities
    from model_zoo.simulate.slices import draw_smooth_phase

    image = _simulate_slice()
    rng = np.random.default_rng(7)
    j, i = np.meshgrid(*(np.arange(n) - n // 2 for n in image.shape), indexing="ij")
    points_mm = np.stack([i, j, np.zeros_like(i)], axis=-1).astype(np.float64)
    phase = np.exp(1j * draw_smooth_phase(image.shape, torch.Generator().manual_seed(7)).numpy())
    coil_images = compute_sensitivities(points_mm, 8, rng) * (image * phase)
    clean = centred_fft(torch.from_numpy(coil_images.astype(np.complex64))).numpy()
    level = 0.005 * float(image.max())
    noise = level * (rng.standard_normal((8, *image.shape, 2)) @ np.array([1, 1j]))
    prescan = level * (rng.standard_normal((8, 4096, 2)) @ np.array([1, 1j]))
    mask = masks.poisson_2d((image.shape[0], image.shape[1]), 4.0, 24, rng)
    samples = np.where(mask, clean + noise, 0)[None]
    grid = mrd.make_axial_grid((1, *image.shape), (1.0, 1.0, 1.0))
    return mrd.from_array(samples, grid=grid, slice_thickness_mm=1.0, layout="3d plane", noise=prescan)


def _simulate_slice() -> NDArray[np.float32]:
    """Return an axial slice (256, 216) of the simulated head at 1 mm, rows to the back, columns to the left."""
    import torch

    from model_zoo.physics import mr
    from model_zoo.simulate.phantom import make_phantom
    from model_zoo.simulate.slices import draw_texture

    tissue = make_phantom((3, 480, 400), 0.5).tissue[1].long()  # the axial slice through the centre
    signal = mr.mprage(mr.TissueParameters.table(), 2300, 900, 0.157, 7.1, 176).abs()
    fine = signal[tissue] * draw_texture((480, 400), (0.5, 0.5), torch.Generator().manual_seed(7))
    image = torch.nn.functional.avg_pool2d(fine[None], 2)[0]
    return np.asarray(torch.nn.functional.pad(image, (8, 8, 8, 8)).numpy(), np.float32)
