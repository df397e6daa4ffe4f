"""What is watched while a network trains."""

from types import SimpleNamespace

from pfgm_jax import generator, run_record
from pfgm_jax.training import monitor


class Said:
    """A log that keeps what it is told."""

    def __init__(self):
        self.lines, self.pictures = [], []

    def say(self, line):
        self.lines.append(line)

    def picture(self, *what):
        self.pictures.append(what)


def test_an_adaptive_solver_does_not_hold_up_training(tmp_path, monkeypatch):
    """A picture while training costs a bounded number of evaluations, whatever the network is."""
    trained = generator.load("pretrained:digits")
    monkeypatch.setattr(monitor, "PICTURE_STEPS", 2)
    small = {"sample.n": 2, "sample.frames": 0}
    for changes, words in (({}, "no samples yet: rk45 came only"), ({"sample.max_steps": 500}, "")):
        log, config = Said(), run_record.with_overrides(trained.config, small | changes)
        monitor.picture(config, trained.derived, tmp_path, SimpleNamespace(images=None), log)(trained.params, 5)
        assert [words in line for line in log.lines] == ([True] if words else [])
        assert monitor.picture_path(tmp_path, 5).exists() == bool(log.pictures) == (not words)
