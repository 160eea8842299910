"""The sections [[deidentify]] of node.toml: profiles of copies for research destinations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dicomnode.config.results import DefacedResultsConfig, ResultsConfig
from dicomnode.config.section import Section
from dicomnode.config.value_types import OptionalPath

__all__ = ["DeidentifyConfig"]


class DeidentifyConfig(Section):
    """A de-identification profile.

    ``key_file``: the secret from which pseudonyms, UIDs and shifts of dates are derived; ``map_file``: the record of
    subjects and patients, None: no record; ``dates``: "shift" moves the dates of each subject by a number of days of
    its own; ``private``: "safe" keeps private elements of scanners that are known to identify nobody; ``burned_in``:
    whether images are sent that may have text in their pixels; ``deface``: whether heads go without faces.
    """

    name: str = Field(min_length=1, max_length=32)
    key_file: Path
    map_file: OptionalPath = None
    pseudonym_prefix: str = Field(default="", max_length=32, pattern=r"^[A-Za-z0-9._-]*$")
    retain_uids: bool = False
    dates: Literal["remove", "shift"] = "remove"
    patient_characteristics: bool = False
    device: bool = False
    institution: bool = False
    clean_descriptors: bool = False
    private: Literal["remove", "safe"] = "remove"
    burned_in: Literal["refuse", "send"] = "refuse"
    deface: bool = False

    def restrict_results(self, results: ResultsConfig) -> ResultsConfig:
        """Return the results section for a destination of this profile.

        A page of a report states the study's date in its pixels, so such a destination gets none.
        """
        kind = DefacedResultsConfig if self.deface else ResultsConfig
        return kind.model_validate(results.model_dump() | {"report_page": ()})
