"""Real peers for tests, on loopback: Orthanc, DCMTK's storescp and dcmqrscp, and the node itself.

Each is a process of its own, as a context manager that starts it, waits until it answers, and stops it by its process
id. A test asks for one by a fixture of ``tests/peers/fixtures.py``; where the program is not installed, the test is
skipped.
"""

from tests.peers.answering import Answering
from tests.peers.committing import Committing
from tests.peers.dcmqrscp import QueryScp
from tests.peers.files import write_instance, write_result
from tests.peers.nodes import Node, make_route, write_config
from tests.peers.orthanc import Orthanc
from tests.peers.process import free_port, wait_for
from tests.peers.storescp import StoreScp

__all__ = [
    "Answering",
    "Committing",
    "Node",
    "Orthanc",
    "QueryScp",
    "StoreScp",
    "free_port",
    "make_route",
    "wait_for",
    "write_config",
    "write_instance",
    "write_result",
]
