"""Figures that compare generated images with real ones; heavy imports happen where they are used."""

from pfgm_jax.metrics.frechet import fid
from pfgm_jax.metrics.intervals import compare, estimate
from pfgm_jax.metrics.kernel_distance import kid, kid_subsets
from pfgm_jax.metrics.neighbours import density_coverage, nearest_distance, precision_recall
from pfgm_jax.metrics.pixel_score import CRITERIA, PixelScorer, Score, controls, table
from pfgm_jax.metrics.references import per_class, real_floor, reference

__all__ = [
    "CRITERIA", "PixelScorer", "Score", "compare", "controls", "density_coverage", "estimate", "fid", "kid",
    "kid_subsets", "nearest_distance", "per_class", "precision_recall", "real_floor", "reference", "table",
]  # fmt: skip
