"""The table of proofs that destinations keep what was delivered to them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Pk, Uid
from db.states import ProofState, ProofStep

__all__ = ["Proof"]


class Proof(Base):
    """Proof that a destination keeps one delivered object; a delivery without a row was sent and is not asked about.

    The UIDs are those of the object as it was sent: a de-identified copy has its own. ``step``: what happens next, at
    ``not_before``; ``begun_at``: when that step began. ``resends``: how often the object was sent again because the
    destination did not commit it.
    """

    __tablename__ = "proofs"

    id: Mapped[Pk]
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), unique=True)
    destination: Mapped[str]
    state: Mapped[ProofState] = mapped_column(default=ProofState.SENT)
    step: Mapped[ProofStep]
    study_uid: Mapped[Uid]
    series_uid: Mapped[Uid]
    sop_instance_uid: Mapped[Uid]
    sop_class_uid: Mapped[Uid]
    transaction_uid: Mapped[Uid] = mapped_column(default="", index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    resends: Mapped[int] = mapped_column(default=0)
    begun_at: Mapped[datetime]
    not_before: Mapped[datetime]
    proven_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(default="")

    @property
    def is_owed(self) -> bool:
        """True while the destination has yet to prove that it keeps the object, or did not in time."""
        if self.state is ProofState.SENT:
            return self.step is not ProofStep.NONE
        return self.state is ProofState.UNPROVEN

    __table_args__ = (Index(None, "state", "step", "not_before"),)
