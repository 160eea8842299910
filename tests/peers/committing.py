"""Archive that stores and commits as the test chooses, in ways that real peers do not on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts, VerificationPresentationContexts
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from db.commitments import Verdict
from dicomnode.commitment import information
from dicomnode.config import Peer

__all__ = ["Committing"]

Judge = Callable[[str], int]


class Committing:
    """pynetdicom server: ``judge`` gives the Failure Reason of each instance, 0 for committed.

    ``statuses``: of the answers to requests, then 0000; None aborts the association instead of an answer.
    ``same_association``: reports there; otherwise ``report`` sends the last one to a port. ``before_answer``: called
    before a request is answered.
    """

    def __init__(
        self,
        judge: Judge = lambda uid: 0,
        *,
        statuses: tuple[int | None, ...] = (),
        same_association: bool = False,
        before_answer: Callable[[], object] = lambda: None,
    ) -> None:
        self.stored: list[str] = []
        self.requests: list[information.Call] = []
        self._judge, self.same_association = judge, same_association
        self._statuses: Iterator[int | None] = iter(statuses)
        self.before_answer = before_answer
        ae = AE("ARCHIVE")
        ae.supported_contexts = VerificationPresentationContexts
        ae.add_supported_context(StorageCommitmentPushModel)
        for cx in AllStoragePresentationContexts:
            ae.add_supported_context(cx.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._answer)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.peer = Peer(name="archive", ae_title="ARCHIVE", port=self._server.socket.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()

    @property
    def transactions(self) -> list[str]:
        return [each.transaction_uid for each in self.requests]

    def offer_nothing(self) -> None:
        """Accept no presentation context from now on."""
        self._server.contexts = []

    def abort_next(self, count: int) -> None:
        """Abort the association of the next requests instead of an answer."""
        self._statuses = iter([None] * count)

    def report(self, port: int, number: int = -1) -> int:
        """Report on a request over a new association; return the status of the answer."""
        ae = AE("ARCHIVE")
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate("127.0.0.1", port, contexts=[build_context(StorageCommitmentPushModel)], ext_neg=[role])
        assert assoc.is_established
        answer = self._send_report(assoc, self.requests[number])
        assoc.release()
        return int(answer.Status)

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _answer(self, event: evt.Event) -> tuple[int, None]:
        ds = event.action_information
        items = ds.ReferencedSOPSequence
        references = tuple((str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in items)
        call = information.Call(str(ds.TransactionUID), references)
        self.requests.append(call)
        self.before_answer()
        status = next(self._statuses, 0x0000)
        if status is None:
            event.assoc.abort()
            return 0x0110, None
        if status == 0x0000 and self.same_association:
            threading.Thread(target=self._send_report, args=(event.assoc, call), daemon=True).start()
        return status, None

    def _send_report(self, assoc: Association, call: information.Call) -> Dataset:
        verdicts = [Verdict(kind, uid, self._judge(uid)) for kind, uid in call.references]
        event_type, ds = information.make_report(call.transaction_uid, verdicts, "ARCHIVE")
        answer: Dataset
        answer, _ = assoc.send_n_event_report(
            ds, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return answer
