"""The time zone of a data set's dates and times (PS3.3 C.12.1.1.8)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from pydicom.dataset import Dataset

__all__ = ["moment"]


def moment(ds: Dataset, now: datetime) -> datetime:
    """Return ``now`` in the time zone that Timezone Offset From UTC (0008,0201) gives all times of the data set.

    Where it has none, ``now`` comes back as it is: in the zone of the node. The offset is not added then, because it
    would speak of the study's own dates and times, too, whose zone nobody stated, and a site has two in a year.
    """
    offset = str(ds.get("TimezoneOffsetFromUTC") or "")
    if not offset:
        return now
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return now.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))
