"""The tracer table is complete, cited and consistent with the scales built on it."""

from __future__ import annotations

import pytest
import torch

from model_zoo.physics.tracers import (
    ASSUMED,
    COMPOSITES,
    REGIONS,
    TRACERS,
    Tracer,
    centiloid,
    centiloid_to_suvr,
    composite_uptake,
    uptake,
    uptake_sd,
)

each_tracer = pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)
amyloid = pytest.mark.parametrize("name", ["florbetapir", "PiB"])


@each_tracer
def test_every_region_has_a_cited_cell_for_every_state(tracer: Tracer) -> None:
    assert set(tracer.table) == set(REGIONS)
    for cells in tracer.table.values():
        assert len(cells) == len(tracer.knots)
        assert all(cell.citation and cell.suvr >= 0 and cell.sd > 0 for cell in cells)


def test_cells_that_nobody_measured_say_so_and_anchored_ones_name_a_source() -> None:
    cells = [cell for t in TRACERS.values() for row in t.table.values() for cell in row]
    assert sum(cell.citation == ASSUMED for cell in cells) > 0.8 * len(cells)
    for source in ("Klunk", "C-PAS", "Maass", "BrainWeb"):
        assert any(source in cell.citation for cell in cells)


@each_tracer
def test_the_reference_region_has_a_ratio_of_one(tracer: Tracer) -> None:
    volumes = {"cerebellar cortex": 0.8, "cerebellar white matter": 0.2}
    values = uptake(tracer, tracer.knots[0])
    weight = sum(volumes[name] for name in tracer.reference)
    mean = sum(volumes[name] * float(values[REGIONS.index(name)]) for name in tracer.reference) / weight
    assert mean == pytest.approx(1.0, abs=0.03)


@amyloid
def test_the_composite_of_a_load_is_the_suvr_of_its_centiloid(name: str) -> None:
    loads = torch.tensor([-10.0, 0.0, 24.0, 60.0, 110.0])
    found = composite_uptake(TRACERS[name], loads)
    assert torch.allclose(found, torch.tensor([centiloid_to_suvr(name, float(cl)) for cl in loads]), atol=1e-4)
    assert centiloid(name, float(found[2])) == pytest.approx(24.0, abs=0.05)


def test_centiloid_anchors_are_0_and_100() -> None:
    assert centiloid("PiB", 1.009) == pytest.approx(0.0, abs=1e-6)
    assert centiloid("PiB", 2.076) == pytest.approx(100.0, abs=1e-6)
    with pytest.raises(KeyError):
        centiloid("flortaucipir", 1.3)


def test_a_state_between_knots_is_interpolated_and_one_at_a_knot_is_the_cell() -> None:
    tracer = TRACERS["flortaucipir"]
    row = REGIONS.index("temporal cortex")
    assert float(uptake(tracer, 3.5)[row]) == pytest.approx(1.55, abs=1e-5)
    assert float(uptake(tracer, 2.5)[row]) == pytest.approx((1.15 + 1.55) / 2, abs=1e-5)
    assert float(uptake(tracer, 6.0)[row]) == pytest.approx(2.10 + 0.25 * 0.55, abs=1e-5)


@each_tracer
def test_the_target_binds_more_with_disease_but_glucose_less(tracer: Tracer) -> None:
    first, last = composite_uptake(tracer, tracer.knots[0]), composite_uptake(tracer, tracer.knots[-1])
    assert (last < first) if tracer.target == "metabolism" else (last > first)


@each_tracer
def test_no_typical_scan_exceeds_the_fixed_scale(tracer: Tracer) -> None:
    peak = (uptake(tracer, torch.tensor(tracer.knots)) + 2 * uptake_sd(tracer)).max()
    assert float(peak) < tracer.scale
    assert sum(COMPOSITES[tracer.target].values()) == pytest.approx(1.0)
