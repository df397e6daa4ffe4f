"""Runs and weights that come from elsewhere or travel."""
