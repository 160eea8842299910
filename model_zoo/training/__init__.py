"""One recipe per model: data, loss, loop, evaluation, bundle. ``RECIPES`` names them for the command line."""

RECIPES: dict[str, str] = {"mri-prior": "model_zoo.training.mri_prior"}
