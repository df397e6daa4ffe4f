"""The report of an installation."""

import pytest

from pfgm_jax import doctor


@pytest.mark.slow
def test_a_sound_installation_is_called_well(command):
    code, out, err = command("--mode=doctor")
    assert code == 0, err
    for name in (*doctor.CHECKS, *doctor.NEEDED, "devices", "disk"):
        assert name in out
    assert out.count("works") == len(doctor.CHECKS) and "all is well" in out


def test_what_fails_is_named_and_the_rest_still_checked(command, monkeypatch):
    def broken():
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "CHECKS", {"first": broken, "second": lambda: None})
    code, out, err = command("--mode=doctor")
    assert code == 2
    assert "first … FAILED, OSError: no such library" in out and "second … works" in out
    assert err.strip() == "pfgm_jax: 1 of 2 checks failed: first; see the lines above"


def test_the_check_of_the_field_can_fail(monkeypatch):
    import pfgm_jax

    monkeypatch.setattr(pfgm_jax, "exact_denoiser", lambda points, D: lambda x, sigma: 0 * x)
    with pytest.raises(ArithmeticError):
        doctor._field()


def test_an_absent_package_is_said():
    assert doctor.version("no-such-package") == "absent"
