"""What checks the annotations of the package's functions at every call of a test; see conftest.py."""

import beartype

# An int where a float is asked for is fine, as type checkers have it.
types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
