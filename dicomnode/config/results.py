"""What result objects look like: for the node, [results], and where a destination wants it otherwise, its [[peers]]."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from dicomnode.config.quantities import check_written_out

__all__ = ["ImageKind", "Preferences", "ResultsConfig", "Section", "SegmentationKind", "WithoutFaces"]

ImageKind = Literal["multiframe", "single", "parametric", "modality"]
SegmentationKind = Literal["binary", "labelmap"]
PageKind = Literal["pdf", "sc"]


class Section(BaseModel):
    """A table of node.toml."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, populate_by_name=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _paths_are_written_out(cls, value: Any) -> Any:
        return check_written_out(value)


def _uid_root(value: str) -> str:
    from dicomnode import uids

    if value:
        uids.derive("", prefix=value)
    return value


class Preferences(Section):
    """What a destination wants; None: as [results] says. A kind that it does not accept gives way to the next one."""

    image_kind: ImageKind | None = None
    segmentation_kind: SegmentationKind | None = None
    labelled_kind: Literal["multiframe", "single"] | None = None
    labelled: bool | None = None
    clean: bool | None = None
    report: bool | None = None
    report_page: tuple[PageKind, ...] | None = None
    key_object: bool | None = None


class ResultsConfig(Section):
    """What result objects look like. ``labelled_kind``: of the labelled series where ``image_kind`` is no Secondary
    Capture; ``key_object``: whether a Key Object note tells of studies that are held or refused."""

    image_kind: ImageKind = "multiframe"
    segmentation_kind: SegmentationKind = "binary"
    labelled_kind: Literal["multiframe", "single"] = "multiframe"
    labelled: bool = True
    clean: bool = True
    report: bool = True
    report_page: tuple[PageKind, ...] = ()
    key_object: bool = False
    series_number_base: int = Field(default=9000, ge=1, le=2_000_000_000)
    uid_prefix: Annotated[str, AfterValidator(_uid_root)] = ""

    @model_validator(mode="after")
    def _some_image(self) -> Self:
        if not (self.labelled or self.clean):
            raise ValueError("labelled and clean cannot both be off: no image would be left")
        return self

    @property
    def secondary_kind(self) -> Literal["multiframe", "single"]:
        """The kind of Secondary Capture for what can be nothing else."""
        return self.image_kind if self.image_kind in ("multiframe", "single") else self.labelled_kind

    @property
    def forms(self) -> str:
        """In what the objects differ from those of the defaults: part of the UID of what refers to all of them."""
        names = ("image_kind", "segmentation_kind", "labelled_kind", "labelled", "clean")
        changed = [name for name in names if getattr(self, name) != ResultsConfig.model_fields[name].default]
        return ",".join(f"{name}={getattr(self, name)}" for name in changed)

    def preferring(self, wanted: Preferences) -> ResultsConfig:
        """These with what a destination wants instead. Raises ValueError where both together make no sense."""
        stated = {name: getattr(wanted, name) for name in Preferences.model_fields}
        return self.changed({name: value for name, value in stated.items() if value is not None})

    def changed(self, values: dict[str, object]) -> ResultsConfig:
        """These with other values, checked again."""
        return type(self).model_validate(self.model_dump() | values)


class WithoutFaces(ResultsConfig):
    """For a destination whose de-identification takes faces away: images of heads are written without."""

    @property
    def forms(self) -> str:
        """These objects are others than those with faces."""
        return ",".join(each for each in ("faces=removed", super().forms) if each)
