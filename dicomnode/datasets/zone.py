"""Time zone of a data set's dates and times (PS3.3 C.12.1.1.8)."""

from __future__ import annotations

from datetime import datetime, timezone

from pydicom.dataset import Dataset

from dicomnode.datasets.moments import parse_offset

__all__ = ["convert_to_zone_of"]


def convert_to_zone_of(ds: Dataset, now: datetime) -> datetime:
    """Return ``now`` in the time zone that Timezone Offset From UTC (0008,0201) gives all times of the data set.

    Without one, ``now`` is returned unchanged: in the zone of the node. The offset is not added to the data set then,
    because it would also apply to the study's own dates and times, whose zone is unknown: a site has two in a year.
    """
    offset = parse_offset(ds.get("TimezoneOffsetFromUTC"))
    return now if offset is None else now.astimezone(timezone(offset))
