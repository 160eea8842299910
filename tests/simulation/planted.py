"""Faults that the simulator has to find: each changes one text of one module, and ``seeds`` find it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAULTS", "PlantedFault"]


@dataclass(frozen=True)
class PlantedFault:
    """A change of the node that breaks one of its promises; ``seeds``: the plans that show it."""

    module: str
    old: str
    new: str
    seeds: tuple[int, ...]


FAULTS: dict[str, PlantedFault] = {
    "a file is acknowledged before it is synchronised": PlantedFault(
        "dicomnode.storage.spool",
        "            os.fsync(self._fd)\n            self._rename(final)",
        "            self._rename(final)",
        (35,),
    ),
    "a folder is not synchronised": PlantedFault(
        "dicomnode.storage.spool",
        "            _sync_folder(final.parent)\n        self._name",
        "            pass\n        self._name",
        (458,),
    ),
    "a full disk at the end of a file is taken for success": PlantedFault(
        "dicomnode.storage.spool",
        '            raise OutOfSpace(f"the spool\'s disk: {exc.strerror}") from exc\n        raise',
        "            return\n        raise",
        (238,),
    ),
    "a short write is taken for a whole one": PlantedFault(
        "dicomnode.storage.spool",
        "                while at < len(view):\n                    at += os.write",
        "                if at < len(view):\n                    at += os.write",
        (375,),
    ),
    "an instance that could not be kept is acknowledged": PlantedFault(
        "dicomnode.ingest.ingest",
        '            return NodeError.dicom_status, "the node could not keep the instance; send it again"',
        '            return SUCCESS, ""',
        (1360,),
    ),
    "a refused instance is acknowledged": PlantedFault(
        "dicomnode.ingest.ingest",
        "            return exc.dicom_status, str(exc)",
        '            return SUCCESS, ""',
        (238,),
    ),
    "a conflicting instance is not put in quarantine": PlantedFault(
        "dicomnode.ingest.ingest",
        "    _quarantine(ledger, arrival, reason)\n    raise",
        "    raise",
        (22,),
    ),
    "the file of an instance in quarantine is removed": PlantedFault(
        "dicomnode.ingest.ingest", "        if is_free and not any(references):", "        if is_free:", (22,)
    ),
    "a row is committed although its file failed": PlantedFault(
        "dicomnode.ingest.group_commit",
        "                    if entry.error is not None:\n                        raise entry.error\n        except",
        "        except",
        (2482,),
    ),
    "commits are not synchronised": PlantedFault(
        "db.engine", '"PRAGMA synchronous = FULL"', '"PRAGMA synchronous = NORMAL"', (35,)
    ),
    "other content under a known UID is taken for a duplicate": PlantedFault(
        "db.studies", '"duplicate" if row.sha256 == arrival.file.sha256 else "conflict"', '"duplicate"', (22,)
    ),
    "a late instance does not open a revision": PlantedFault(
        "db.studies", "    if late and not _is_own_result", "    if not late and not _is_own_result", (14,)
    ),
    "events are not linked": PlantedFault(
        "db.audit", "        previous = digest\n    connection", "    connection", (5,)
    ),
    "a job is enqueued again for work that has one": PlantedFault(
        "db.jobs",
        "    if session.scalar(select(Job.id).where(Job.key == key)) is not None:\n        return None\n    old",
        "    old",
        (691,),
    ),
    "jobs of dead workers stay with them": PlantedFault(
        "db.jobs",
        "    lapsed = list(leases.lock_lapsed(session, Job, JobState.RUNNING, now=now))",
        "    lapsed = []",
        (241,),
    ),
    "leases count as lapsed while they hold": PlantedFault(
        "db.leases", "table.leased_until < now", "table.leased_until > now", (646,)
    ),
    "a lease is never renewed": PlantedFault(
        "dicomnode.execution.lease", "self._done.wait(min(2.0, lease_s / 3))", "self._done.wait()", (646,)
    ),
    "a lost association counts as stored": PlantedFault(
        "dicomnode.dimse.peers",
        "    except RuntimeError:  # the association is no longer established\n        return None\n    except (Val",
        "    except RuntimeError:\n"
        '        return replace(result, outcome=Outcome.STORED, status=0, text="stored")\n'
        "    except (Val",
        (140,),
    ),
    "a refusal counts as stored": PlantedFault(
        "dicomnode.dimse.peers", "    if status == 0x0000:\n", "    if status >= 0x0000:\n", (891,)
    ),
    "the first refusal of a destination is final": PlantedFault(
        "dicomnode.delivery.delivery",
        "self._record_failure(due, result.text, retry_at=self._retry_at(due))",
        "self._record_failure(due, result.text, retry_at=None)",
        (891,),
    ),
    "no proof is asked for": PlantedFault(
        "dicomnode.delivery.delivery",
        "if sent is not None and is_ours:",
        "if sent is not None and not is_ours:",
        (5,),
    ),
    "a result is made of one of the inputs": PlantedFault(
        "dicomnode.execution.job_run",
        "        inputs.setdefault(each.name, []).append(",
        "        inputs.setdefault(each.name, []).clear() or inputs[each.name].append(",
        (4,),
    ),
    "what a search does not find counts as proven": PlantedFault(
        "dicomnode.commitment.proving",
        "        if row.sop_instance_uid in found:\n",
        "        if row.sop_instance_uid in found or not found:\n",
        (1660,),
    ),
    "retention waits for no proof": PlantedFault(
        "dicomnode.maintenance.retention",
        "if row.destination in names and row.proof is not None and row.proof.is_owed:",
        "if row.destination in () and row.proof is not None and row.proof.is_owed:",
        (1660,),
    ),
}  # fmt: skip
