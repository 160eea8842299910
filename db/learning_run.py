"""The table of learning runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Digest, Pk
from db.states import LearningState

__all__ = ["LearningRun"]


class LearningRun(Base):
    """Training of a pipeline's model on decided cases, over one night or several, and what came of it.

    ``base``, ``model``: NAME@VERSION that it starts from and that it makes. ``settings``: of the [[learning]] table
    when the run began. ``cases``: every decided case, with the reason of those that are left out. ``scores``: the test
    cases with the figure of both versions. ``begun_at``: of the last night. ``idle_nights``: in a
    row without a new checkpoint. ``model_digest``: of the weights that were evaluated.
    """

    __tablename__ = "learning_runs"

    id: Mapped[Pk]
    name: Mapped[str]
    pipeline: Mapped[str]
    recipe: Mapped[str]
    base: Mapped[str]
    base_digest: Mapped[Digest]
    model: Mapped[str]
    model_digest: Mapped[str] = mapped_column(default="")
    state: Mapped[LearningState] = mapped_column(default=LearningState.EXPORTING)
    settings: Mapped[dict[str, Any]]
    cases: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    scores: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    step: Mapped[int] = mapped_column(default=0)
    nights: Mapped[int] = mapped_column(default=0)
    idle_nights: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    begun_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_learning_runs_open", "name", unique=True,
            sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL"),
        ),
    )  # fmt: skip
