"""Names of pipelines for people: words instead of underscores, abbreviations in capitals."""

from __future__ import annotations

__all__ = ["name_pipeline", "title_pipeline"]

_ABBREVIATIONS = frozenset({"ct", "dir", "flair", "mr", "mri", "ms", "pet", "suv", "suvr"})


def name_pipeline(pipeline: str) -> str:
    """Return a pipeline's name within a sentence: ``ms_lesions`` is "MS lesions". That of a bundle stays as it is."""
    if ":" in pipeline:
        return pipeline
    return " ".join(each.upper() if each in _ABBREVIATIONS else each for each in pipeline.split("_"))


def title_pipeline(pipeline: str) -> str:
    """Return a pipeline's name as a title, with a capital at its beginning."""
    name = name_pipeline(pipeline)
    return name if ":" in name else f"{name[:1].upper()}{name[1:]}"
