"""Options on lesions that every pipeline with the lesion model has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from model_zoo.lesion_decision import LesionCriteria
from pipelines.lesions import Thresholds

__all__ = ["LesionOptions"]


class LesionOptions(BaseModel):
    """Thresholds by which parts of the probability map are lesions, and the most that are listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lesion_probability: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="probability above which a voxel belongs to a lesion",
    )
    smallest_lesion_mm3: float = Field(default=15.0, ge=1, description="smallest volume of a lesion in mm3")
    lesion_sure: float = Field(default=0.85, ge=0, le=1, description="smallest mean probability of a lesion")
    lesion_flair: float = Field(
        default=2.5,
        ge=0,
        description="smallest FLAIR signal of a lesion's bright tenth, in sd above the median of its structure",
    )
    lesions_told: int = Field(default=40, ge=0, le=200, description="most lesions that the report lists one by one")

    @property
    def thresholds(self) -> Thresholds:
        decision = LesionCriteria(
            self.lesion_probability, self.smallest_lesion_mm3, self.lesion_sure, self.lesion_flair
        )
        return Thresholds(decision, max_listed=self.lesions_told)
