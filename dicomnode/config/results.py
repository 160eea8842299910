"""The section [results] of node.toml, and the preferences of a destination in [[peers]] that replace it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dicomnode.config.section import Section

__all__ = ["DefacedResultsConfig", "ImageKind", "Preferences", "ResultsConfig", "SegmentationKind"]

ImageKind = Literal["multiframe", "single", "parametric", "modality"]
SegmentationKind = Literal["binary", "labelmap"]
PageKind = Literal["pdf", "sc"]


def _check_uid_root(value: str) -> str:
    from dicomnode import uids

    if value:
        uids.derive("", prefix=value)
    return value


class Preferences(Section):
    """Preferences of a destination; None: the value of [results]. A kind of object that the destination does not accept
    gives way to the next one."""

    image_kind: ImageKind | None = None
    segmentation_kind: SegmentationKind | None = None
    labelled_kind: Literal["multiframe", "single"] | None = None
    labelled: bool | None = None
    clean: bool | None = None
    report: bool | None = None
    report_page: tuple[PageKind, ...] | None = None
    key_object: bool | None = None


class ResultsConfig(Section):
    """Kinds, labels and numbers of result objects. ``labelled_kind``: the kind of the labelled series where
    ``image_kind`` is no Secondary Capture; ``key_object``: whether a Key Object note marks studies that are held or
    refused."""

    image_kind: ImageKind = "multiframe"
    segmentation_kind: SegmentationKind = "binary"
    labelled_kind: Literal["multiframe", "single"] = "multiframe"
    labelled: bool = True
    clean: bool = True
    report: bool = True
    report_page: tuple[PageKind, ...] = ()
    key_object: bool = False
    series_number_base: int = Field(default=9000, ge=1, le=2_000_000_000)
    uid_prefix: Annotated[str, AfterValidator(_check_uid_root)] = ""

    @model_validator(mode="after")
    def _check_some_image(self) -> Self:
        if not (self.labelled or self.clean):
            raise ValueError("labelled and clean cannot both be off: no image would be left")
        return self

    @property
    def secondary_kind(self) -> Literal["multiframe", "single"]:
        """The kind of Secondary Capture for images that no other kind can hold."""
        return self.image_kind if self.image_kind in ("multiframe", "single") else self.labelled_kind

    @property
    def rendition_key(self) -> str:
        """The settings in which these objects differ from the default rendition, as text; empty for the default.

        The UIDs of objects that refer to all the others depend on it.
        """
        names = ("image_kind", "segmentation_kind", "labelled_kind", "labelled", "clean")
        changed = [name for name in names if getattr(self, name) != ResultsConfig.model_fields[name].default]
        return ",".join(f"{name}={getattr(self, name)}" for name in changed)

    def with_overrides(self, preferences: Preferences) -> ResultsConfig:
        """Return these settings with the preferences of a destination. Raises ValueError where they contradict."""
        overrides = {name: getattr(preferences, name) for name in Preferences.model_fields}
        return self.with_values({name: value for name, value in overrides.items() if value is not None})

    def with_values(self, values: dict[str, object]) -> ResultsConfig:
        """Return these settings with other values, validated again. Raises ValueError."""
        return type(self).model_validate(self.model_dump() | values)


class DefacedResultsConfig(ResultsConfig):
    """Results for a destination whose de-identification removes faces: images of heads are written without."""

    @property
    def rendition_key(self) -> str:
        """The key of the rendition without faces."""
        return ",".join(each for each in ("faces=removed", super().rendition_key) if each)
