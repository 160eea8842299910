"""Storage server with answers that the test chooses and real peers do not give on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.presentation import AllStoragePresentationContexts, VerificationPresentationContexts

from dicomnode.config import Peer

__all__ = ["Answering"]


class Answering:
    """pynetdicom server on a free port with a chosen answer: ``with Answering(lambda event: 0xA700) as server:``."""

    def __init__(self, on_store: Callable[[evt.Event], int], *, max_pdu: int = 16382) -> None:
        self.stored: list[str] = []
        self.associations = 0
        self._on_store = on_store
        ae = AE("SERVER")
        ae.maximum_pdu_size = max_pdu
        ae.supported_contexts = VerificationPresentationContexts
        for cx in AllStoragePresentationContexts:
            ae.add_supported_context(cx.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._count)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        port = self._server.socket.getsockname()[1]
        self.peer = Peer(name="answering", ae_title="SERVER", host="127.0.0.1", port=port)

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return self._on_store(event)

    def _count(self, event: evt.Event) -> None:
        self.associations += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
