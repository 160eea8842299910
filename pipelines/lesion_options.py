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
    lesion_growth_mm: float = Field(
        default=3.0,
        ge=0,
        le=10,
        description="how far a lesion grows over its rim on FLAIR in mm, in white matter; 0: not at all",
    )
    lesion_core: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="smallest mean probability of a lesion with a bright core deep in white matter; 1: no such rule",
    )
    lesions_told: int = Field(default=40, ge=0, le=200, description="most lesions that the report lists one by one")

    @property
    def thresholds(self) -> Thresholds:
        decision = LesionCriteria(
            probability=self.lesion_probability,
            smallest_mm3=self.smallest_lesion_mm3,
            sure=self.lesion_sure,
            flair=self.lesion_flair,
            growth_mm=self.lesion_growth_mm,
            sure_core=self.lesion_core,
        )
        return Thresholds(decision, max_listed=self.lesions_told)
