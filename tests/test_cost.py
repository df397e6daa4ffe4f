"""What networks cost: operations by hand, and the memory that is announced beside the memory that is taken."""

import pathlib

import pytest

from benchmarks import cost

PAGE = pathlib.Path(__file__).parents[1] / "docs/cost.md"


def conv(side, inputs, outputs, width=3):
    """Multiplications and additions of a SAME convolution with square kernels, those with the padding left out."""
    reach = sum(min(i, width // 2) + min(side - 1 - i, width // 2) + 1 for i in range(side))
    return 2 * reach**2 * inputs * outputs


def block(side, inputs, outputs, resized=False):
    """Two convolutions, the embedding's layer, and a 1×1 convolution on the skip where it is needed."""
    skip = conv(side, inputs, outputs, 1) if resized or inputs != outputs else 0
    return conv(side, inputs, outputs) + conv(side, outputs, outputs) + 2 * 128 * outputs + skip


def attention(side, channels):
    """Queries, keys, values and projection; similarities and their sum."""
    return 2 * side**2 * channels * 4 * channels + 2 * 2 * side**4 * channels


def test_operations_of_a_small_network_by_hand():
    # cpu_28: 32, 64 and 64 channels at 28, 14 and 7 px, a block a level, attention at 7 px and in the middle.
    by_hand = (
        2 * (32 * 128 + 128 * 128) + conv(28, 3, 32) + block(28, 32, 32)  # the embedding, and down
        + block(14, 32, 64, True) + block(14, 64, 64)
        + block(7, 64, 64, True) + block(7, 64, 64) + attention(7, 64)
        + 2 * block(7, 64, 64) + attention(7, 64)  # the middle
        + 2 * block(7, 128, 64) + attention(7, 64)  # and up, each with a skip from the encoder
        + block(14, 64, 64, True) + block(14, 128, 64) + block(14, 96, 64)
        + block(28, 64, 32, True) + 2 * block(28, 64, 32) + conv(28, 32, 3)
    )  # fmt: skip
    fields, size = cost.NETWORKS["cpu_28"]
    _, forward, _ = cost.programs(cost.network(fields()), size, 1)
    counted = forward().cost_analysis()["flops"]
    # What is left: normalisation, activations, sums; 20 to 30 an element of some dozens of layers.
    assert by_hand < counted < 1.05 * by_hand


@pytest.mark.slow
@pytest.mark.parametrize("arg, overrides", [("size=28,cpu", {}), ("size=28,cpu,process=pfgm", {"train.batch": "32"})])
def test_memory_announced_is_the_memory_taken(arg, overrides):
    measured = cost.measure(f"configs/medmnist.py:{arg}", overrides)
    # It was 10 to 14 % too low: what the convolution library takes while it works is not the compiler's to know.
    assert measured["estimate"] == pytest.approx(measured["peak"], rel=0.2)


def in_documentation():
    """{network: cells} of the table of docs/cost.md."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if row[0] in cost.NETWORKS}


@pytest.mark.parametrize(
    "name", [n if n == "cpu_28" else pytest.param(n, marks=pytest.mark.slow) for n in cost.NETWORKS]
)
def test_the_documentation_has_what_is_counted(name):
    _, size, parameters, *counted = cost.row(name, memory=False).strip("| ").split(" | ")
    documented = in_documentation()[name]
    assert documented[:2] == [size, parameters]
    # XLA's counts of normalisation and activations move with its version.
    assert [float(x) for x in documented[2:4]] == pytest.approx([float(x) for x in counted[:2]], rel=0.02)
