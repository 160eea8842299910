"""Measurements of a whole result in plain words: what a value beyond its limit means, and what to look at.

The output gate adds these words to the value and the limit. A test holds the table complete: every measurement without
a group that a pipeline makes, and every one that a shipped bundle limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

__all__ = ["MEANINGS", "Meaning", "find_meaning"]

SOURCE_AND_RESULT = "source and result side by side"


@dataclass(frozen=True)
class Meaning:
    """Words on a measurement: a clause that says what it is, what to look at, and the unit where UCUM says only 1."""

    text: str
    look_at: str
    unit: str = ""


_FIT = "the residual of the measured samples over their noise variance, 1 is within the noise"
_SD = "the standard deviation that the model itself states"
_LESIONS = "a count or volume of the lesions found"
_OVERLAY = "the lesion segmentation on the FLAIR"
_STRUCTURES = "the segmentation of the structures on the image"
_CHANGE = "a change of the lesions since the earlier examination"
_EARLIER = "both examinations and the map of new and enlarged lesions"
_SOLVER = "a fact of the computation"
_SETTINGS = "the options of the route"

MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        # any head
        "anatomy deviation": Meaning(
            "how far the volumes of the structures are from those of the training, about 1 is usual", _STRUCTURES
        ),
        "share of structures of low confidence": Meaning(
            "the part of the structures, from 0 to 1, that the model is unsure of or does not find", _STRUCTURES
        ),
        "structures of low confidence": Meaning(
            "the number of structures that the model is unsure of or does not find", _STRUCTURES
        ),
        "denoising deviation": Meaning(
            "how unlike the images of the training this image is, 0 is usual",
            "the image: noise, motion, wrapped tissue, metal",
            "standard deviations",
        ),
        "asymmetric region": Meaning(
            "the largest region unlike its mirror image, as tumours, infarcts and cavities are",
            "the image for a lesion that the model was not made for",
        ),
        "brain volume": Meaning("the volume of the brain without the fluid around it", _STRUCTURES),
        "intracranial volume": Meaning("the volume of brain and fluid", _STRUCTURES),
        "* volume": Meaning("the volume of one kind of tissue", _STRUCTURES),
        # reconstruction
        "acceleration": Meaning("positions of k-space over acquired samples", "the protocol of the scan"),
        "denoiser evaluations": Meaning(_SOLVER, _SETTINGS),
        "noise level": Meaning("the standard deviation of the noise in the units of the samples", "the noise pre-scan"),
        "chi-square": Meaning(_FIT, "the image for motion, spikes and folded tissue", "times the noise variance"),
        "chi-square, worst slice": Meaning(
            f"{_FIT}, in the slice that fits worst", "that slice for motion and spikes", "times the noise variance"
        ),
        "views": Meaning("the number of directions from which rays were measured", "the protocol of the scan"),
        "missing angle": Meaning(
            "what the scan lacks to half a turn and the angle of its fan, whose edges were not measured",
            "edges along the missing directions, which the model may have invented",
            "degrees",
        ),
        "median photons": Meaning("the photons that a usual ray detected", "the dose of the scan"),
        "object outside": Meaning(
            "the part of the views, from 0 to 1, in which the object leaves the image",
            "the whole image: what lies outside is spread over it",
        ),
        "truncated views": Meaning(
            "the part of the views, from 0 to 1, in which the object leaves the detector",
            "the rim of the image, whose CT numbers are wrong",
        ),
        "scale": Meaning("the signal that the model saw as one", "the brightness of the image"),
        "coils used": Meaning("the number of coils after compression", "the receiver coils of the scan"),
        "coil compression loss": Meaning(
            "the part of the signal, from 0 to 1, that is lost where coils are combined into fewer",
            "dark patches near single coils",
        ),
        "folded share": Meaning(
            "the part of the object, from 0 to 1, that is larger than the field of view and folds into it",
            "the edges of the image for wrapped tissue",
        ),
        "unexplained coil energy": Meaning(
            "the part of the signal, from 0 to 1, that the coil maps do not explain",
            "the image for wrapped tissue and for shading near the coils",
        ),
        "adaptation steps": Meaning(_SOLVER, _SETTINGS),
        "held-out chi-square before adaptation": Meaning(
            "the misfit of samples that nothing was made from, before adaptation",
            "the image for motion",
            "times the noise variance",
        ),
        "held-out chi-square after adaptation": Meaning(
            "the misfit of samples that nothing was made from, after adaptation",
            "the image for motion",
            "times the noise variance",
        ),
        "sd factor": Meaning(
            "what the standard deviation was multiplied by to explain samples that were held out",
            "the standard deviation beside the image",
        ),
        "share of the estimate": Meaning(
            "the part of the image, from 0 to 1, that is the estimate; small lesions are dimmer where it is large",
            "small structures of low contrast",
        ),
        # synthetic PET
        "reference factor of * PET": Meaning(
            "the mean of the generated PET in its reference region, 1 is expected",
            "cerebellum and brain stem in the generated PET",
        ),
        "activity outside the brain of * PET": Meaning(
            "the signal of the generated PET in the fluid over that in the brain, about 0.6 is usual",
            "ventricles and the rim of the brain in the generated PET",
        ),
        "* composite SUVR": Meaning(
            "the mean SUVR of the regions that studies of this tracer use", "the generated PET in these regions"
        ),
        "Centiloid": Meaning("the amyloid load on the Centiloid scale", "the generated PET in the cortex"),
        "probability of amyloid": Meaning(
            "the part of the samples, from 0 to 1, that are amyloid positive", "the generated PET in the cortex"
        ),
        "amyloid status abstained": Meaning(
            "1 where the model does not decide whether amyloid is there", "the generated PET in the cortex"
        ),
        # standard-dose PET
        "total activity ratio": Meaning(
            "the activity of the result over that of the input, 1 is unchanged", "input and result at the same window"
        ),
        "activity correction": Meaning(
            "what the network's image was multiplied by to keep the activity, 1 is none",
            "input and result at the same window",
        ),
        "activity outside the body": Meaning(
            "activity that the result has outside the body and the input has not",
            "the air around the body in the result",
        ),
        "largest local change": Meaning(
            "the largest change of a mean over 1 ml, in standard deviations of the noise of a voxel",
            "input and result where they differ most: a focus may be new or gone",
            "standard deviations",
        ),
        "noise of the input": Meaning(
            "the standard deviation of a voxel over its surroundings",
            "the input: was it of the dose that the route states",
        ),
        "blend": Meaning("the part of the restored image in the result, from 0 to 1", _SETTINGS),
        "dose fraction": Meaning("the part of the standard dose, from 0 to 1, that the network was told", _SETTINGS),
        "voxels of the network": Meaning("the spacing on which the network saw the image", "small foci in the result"),
        "SUVbw factor": Meaning("the SUV of one unit of the image", "dose, weight and times in the header of the PET"),
        # DIR and lesions
        "bright without support": Meaning(
            "the number of places that are bright on the DIR where the FLAIR is not bright and the T1w not dark",
            "these places on the DIR beside the FLAIR: the network may have invented them",
        ),
        "volume bright without support": Meaning(
            "the volume that is bright on the DIR where the FLAIR is not bright and the T1w not dark",
            "these places on the DIR beside the FLAIR: the network may have invented them",
        ),
        "bright spots on FLAIR": Meaning(
            "the number of bright spots of white matter on the FLAIR", "the FLAIR beside the DIR"
        ),
        "share of FLAIR's bright spots shown": Meaning(
            "the part of the bright spots of white matter on the FLAIR, from 0 to 1, that the DIR shows too",
            "the FLAIR beside the DIR: the network may have left lesions out",
        ),
        "separation of lesions on DIR": Meaning(
            "how well the DIR separates the lesions found from the tissue around them, 1 is fully, 0.5 not at all",
            _OVERLAY,
        ),
        "separation of lesions on FLAIR": Meaning(
            "how well the FLAIR separates the lesions found from the tissue around them, 1 is fully, 0.5 not at all",
            _OVERLAY,
        ),
        "mean standard deviation": Meaning(
            f"{_SD}, mean over the head or body", "the standard deviation beside the image"
        ),
        "mean epistemic standard deviation": Meaning(
            f"{_SD} for its own weights, mean over the brain",
            "the standard deviation beside the image",
            "of grey matter's signal",
        ),
        "cortex on DIR": Meaning("the brightness of the cortex on the DIR, 1 is expected", "the cortex on the DIR"),
        "dropout passes": Meaning(_SOLVER, _SETTINGS),
        "T1w shifted": Meaning(
            "how far the T1w was moved onto the FLAIR", "T1w and FLAIR: are they of the same patient and time"
        ),
        "T1w turned": Meaning(
            "how far the T1w was turned onto the FLAIR", "T1w and FLAIR: are they of the same patient and time"
        ),
        "lesions": Meaning(_LESIONS, _OVERLAY),
        "lesion load": Meaning(_LESIONS, _OVERLAY),
        "unsure parts": Meaning(
            "the number of places that were left out because their lesion probability is low", _OVERLAY
        ),
        "lesions without support": Meaning(
            "the number of places that were left out because the FLAIR is not bright there", _OVERLAY
        ),
        "* lesions": Meaning(_LESIONS, _OVERLAY),
        "* lesion volume": Meaning(_LESIONS, _OVERLAY),
        "new lesions": Meaning(_CHANGE, _EARLIER),
        "volume of new lesions": Meaning(_CHANGE, _EARLIER),
        "enlarged lesions": Meaning(_CHANGE, _EARLIER),
        "volume of enlargement": Meaning(_CHANGE, _EARLIER),
        "earlier lesion load": Meaning("the lesion load of the earlier examination", _EARLIER),
        "lesion load compared": Meaning(
            "the lesion load of this examination, from the inputs that the earlier one has too", _EARLIER
        ),
        # translation
        "overlap with the source": Meaning(
            "the overlap (Dice) of head or body in result and source, 1 is equal", SOURCE_AND_RESULT
        ),
        "edges of the source": Meaning(
            "how well the edges of the result lie on those of the source, 1 is equal", SOURCE_AND_RESULT
        ),
        "PSNR to the acquired": Meaning(
            "how near the result is to the measured series, larger is nearer", "result and measured series side by side"
        ),
        "SSIM to the acquired": Meaning(
            "how like the measured series the result is, 1 is equal", "result and measured series side by side"
        ),
        "mean absolute error": Meaning(
            "the mean difference from the measured series", "result and measured series side by side"
        ),
        "within two standard deviations": Meaning(
            "the part of the voxels, from 0 to 1, whose error the standard deviation explains, 0.94 is right",
            "the standard deviation beside the image",
        ),
        # slice_repair
        "synthetic slices": Meaning("the number of slices that were not measured", "the segmentation of these slices"),
        "mean standard deviation of synthetic slices": Meaning(
            "the mean uncertainty of the filled slices, in the series' own unit",
            "the standard deviation at these slices",
        ),
        # any MONAI bundle
        "segments found": Meaning("the number of segments with at least one voxel", "the segmentation on the source"),
        "mean of *": Meaning("the mean of an image over all its voxels", SOURCE_AND_RESULT),
        # a share of the studies on another version
        "PSNR of the measured image against the current version": Meaning(
            "how near the image is to that of the version in use, larger is nearer",
            "both versions' images side by side",
        ),
        "PSNR of the made image against the current version": Meaning(
            "how near the image is to that of the version in use, larger is nearer",
            "both versions' images side by side",
        ),
        "Dice against the current version": Meaning(
            "the overlap with the segmentation of the version in use, 1 is equal",
            "both versions' segmentations side by side",
        ),
    }
)
"""Words by name of the measurement; ``*`` stands for a name of tissue, place, tracer or image."""


def find_meaning(name: str) -> Meaning | None:
    """Return the words on a measurement, or None for one that only a site's pipeline has."""
    if found := MEANINGS.get(name):
        return found
    fitting = [pattern for pattern in MEANINGS if "*" in pattern and fnmatchcase(name, pattern)]
    return MEANINGS[max(fitting, key=len)] if fitting else None
