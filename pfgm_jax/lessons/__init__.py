"""Lessons in two dimensions: what Poisson flow is, in pictures that the package's own field and solvers draw."""

import pathlib

from pfgm_jax import plots
from pfgm_jax.lessons import charges, dimensions, hemisphere
from pfgm_jax.lessons.lesson import STYLE, Lesson, few_colours, pixels
from pfgm_jax.storage import atomic

# In the order in which they are read; each is a function of `quick`, which is for tests, and returns a Lesson.
LESSONS = (
    charges.net_arrow,
    charges.superposition,
    charges.zooming_out,
    charges.field_lines,
    hemisphere.back_to_the_data,
    hemisphere.mode_collapse,
    hemisphere.projection,
    hemisphere.flux,
    dimensions.from_one_to_infinity,
    dimensions.large_batch,
    dimensions.finite_data,
    dimensions.steps_in_log_z,
)
INDEX = "index.md"


def write(workdir, quick=False) -> str:
    """Draws every lesson into the folder `workdir` and an index of them, index.md; returns the index's path.

    quick: coarse grids and few samples, for tests.

    Raises:
      UserError: the folder cannot be written to.
    """
    folder = atomic.writable(workdir)
    lessons = []
    with atomic.writing_to(folder):
        for lesson in LESSONS:
            lessons.append(draw(lesson, folder, quick))
            print(f"{lessons[-1].name}: {', '.join(lessons[-1].pictures)}", flush=True)
        atomic.write_text(folder / INDEX, index(lessons))
    return f"{len(lessons)} lessons: {folder / INDEX}"


def draw(lesson, folder, quick=False) -> Lesson:
    """One lesson, its pictures written into a folder: figures as PNG, lists of images as GIF."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        result = lesson(quick)
        for name, picture in result.pictures.items():
            path = pathlib.Path(folder, name)
            if isinstance(picture, list):
                with atomic.replacing(path) as temporary:
                    plots.film(picture, temporary, last=1.5)
            else:
                plots.save(few_colours(pixels(picture)), path)
    return result


def index(lessons, pictures="") -> str:
    """The lessons as Markdown, with their pictures at the path `pictures`."""
    head = (
        "# Lessons\n\nWhat Poisson flow is, in pictures, drawn by the package's own field and solvers: "
        "`python -m pfgm_jax.main --mode=lessons --workdir=lessons`.\n\nx is data of N dimensions, yᵢ the "
        "data points, z or r = σ√D the distance from them in the D extra dimensions, E[y | x, σ] the "
        "posterior mean.\n"
    )
    return head + "".join(
        f"\n## {i}. {lesson.title}\n\n{lesson.text}\n\n    {lesson.formula}\n\n"
        + "\n".join(f"![{lesson.title}]({pictures}{name})\n" for name in lesson.pictures)
        for i, lesson in enumerate(lessons, 1)
    )
