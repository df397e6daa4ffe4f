"""From a config to a trained run: the step, the loop, the dry run, the log, advice."""
