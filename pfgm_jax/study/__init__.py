"""A study: variants of one config, trained and measured alike, and their report; a study's file makes a `Study`."""

from pfgm_jax.study.plan import Study, Variant

__all__ = ["Study", "Variant"]
