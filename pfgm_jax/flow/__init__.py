"""The mathematics: schedules, kernels, the exact field, parametrisations, losses, guidance."""
