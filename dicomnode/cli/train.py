"""``dicomnode train RECIPE``: train a model of the zoo and write it as a bundle."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["train"]


def train(
    recipe: Annotated[str, typer.Argument(help="mri-prior")],
    data: Annotated[Path | None, typer.Option(help="Data kit's folder; default: DICOMNODE_DATA.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: ./out/RECIPE.")] = None,
    configuration: Annotated[str, typer.Option(help="cpu, gpu, or smoke (seconds, to see that it runs).")] = "cpu",
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1 …")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
) -> None:
    """Train RECIPE on simulated data, with checkpoints, and write the result as a bundle."""
    from model_zoo.training import RECIPES

    if recipe not in RECIPES:
        raise typer.BadParameter(f"no recipe {recipe!r}; there is: {', '.join(RECIPES)}")
    from model_zoo.simulate import anatomy
    from model_zoo.training import bundle, mri_prior

    if configuration not in mri_prior.CONFIGURATIONS:
        raise typer.BadParameter(f"no configuration {configuration!r}; there is: {', '.join(mri_prior.CONFIGURATIONS)}")
    chosen = mri_prior.CONFIGURATIONS[configuration]
    folder = out or Path("out") / recipe
    console = Console(stderr=True)

    def report(line: dict[str, float]) -> None:
        left_s = line["seconds_per_step"] * (chosen.steps - line["step"])
        console.print(
            f"step {line['step']:.0f}/{chosen.steps}  loss {line['loss']:.3f}  "
            f"PSNR at sigma 0.1: {line['psnr_0.1']:.2f} dB  {left_s / 60:.0f} min left"
        )

    try:
        checkpoint = mri_prior.train(
            chosen, folder, data=data or anatomy.data_root(), device=device, resume=resume, report=report
        )
        bundle.write_mri_prior(checkpoint, folder / "bundle", version="0.0.0", made_on=datetime.now(UTC).date())
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        console.print(f"train {recipe}: {error}")
        raise typer.Exit(1) from error
    print(folder / "bundle")
