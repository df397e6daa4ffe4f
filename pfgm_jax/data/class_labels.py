"""Which classes samples are asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.errors import UserError, counted, nearest, quoted


def class_labels(labels, n, key, classes, counts):
    """The classes that n samples are asked for, whole numbers [n].

    Args:
      labels: "real" draws that of sample i with the frequencies `counts` [K], by (key, i); "balanced" takes all classes
        in turn, i mod K; any other text is the name of a class in `classes`, its number, or several numbers to take in
        turn, "3,5"; a whole number is the class of all; an array is [n], one a sample.

    Raises:
      UserError: labels that are none of these, with the classes that there are.
    """
    K = len(classes)
    if isinstance(labels, str) and labels == "real":
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 2**31), np.arange(n))
        logits = jnp.log(jnp.asarray(counts, jnp.float32))
        return np.asarray(jax.vmap(jax.random.categorical, (0, None))(keys, logits))
    text = isinstance(labels, str)
    wanted = np.asarray(_named_classes(labels, classes, counts) if text else labels)
    shaped = text or wanted.shape in ((), (n,))
    if not shaped or wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= K:
        shown = [quoted(name)[1:-1] for name in classes[:20]]
        there = ", ".join(name if name == str(i) else f"{i} {name}" for i, name in enumerate(shown))
        there += ", …" if K > 20 else ""
        if not text:
            wanted = counted(n, "integer")
            raise UserError(f"labels must be {wanted} from 0 to {K - 1}, one for each sample; the classes are {there}")
        raise UserError(
            f"no class is called {quoted(labels)}; labels are real, balanced, a class's name, its number from 0 "
            f"to {K - 1}, or numbers like 3,5; the classes are {there}{nearest(labels, ['real', 'balanced', *classes])}"
        )
    return np.resize(wanted, n)  # in turn


def _named_classes(text, classes, counts):
    """The classes that a text means, to be taken in turn; −1 for what is no class. A name comes before a number."""
    if text == "balanced":
        return np.flatnonzero(counts)  # those that the network was trained on
    if text in classes:  # names may have commas
        return [classes.index(text)]
    items = [item.strip() for item in text.split(",")]
    return [classes.index(t) if t in classes else int(t) if t.isdecimal() else -1 for t in items]
