"""node.toml as frozen values. The command line reads the file once and hands the values down as arguments.

Each section is a class in a file of its own.
"""

from dicomnode.config.config import Config
from dicomnode.config.loading import load
from dicomnode.config.peers import Peer
from dicomnode.config.routes import Route

__all__ = ["Config", "Peer", "Route", "load"]
