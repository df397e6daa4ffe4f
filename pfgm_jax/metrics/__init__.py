"""Figures that compare generated images with real ones; heavy imports happen where they are used."""

from pfgm_jax.metrics.neighbours import density_coverage, nearest_distance
from pfgm_jax.metrics.pixel_score import CRITERIA, PixelScorer, Score, controls, table

__all__ = ["CRITERIA", "PixelScorer", "Score", "controls", "density_coverage", "nearest_distance", "table"]
