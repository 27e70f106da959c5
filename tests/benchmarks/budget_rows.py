"""The rows of `budget.py`: one packing for all parts of a role, and what a fit chooses, by method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["PAIRS", "ROWS", "Row", "of"]

_MIX: Final = "0-1,4,7,10,13,15-17"
"""Layers whose values and down projections llama.cpp's Q4_K_M gives more bits: the first and last eighth, and every
third between; of 18 layers these."""
_UNIFORM: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "g32": ("`w4a16-g32`", {"extends": "w4a16-g32"}),
    "g128": ("`w4a16-g128`", {"extends": "w4a16-g128"}),
    "mix": (
        "llama.cpp's Q4_K_M mix, int8 where it has 6 bits",
        {
            "extends": "w4a16-g32",
            "rules": [
                {"names": f"*.{part}", "layers": _MIX, "bits": 8, "group_size": 32}
                for part in ("self_attn.[qkv]_proj", "mlp.down_proj")
            ],
        },
    ),
    "w8": ("`w8a16-g32`", {"extends": "w8a16-g32"}),
    "head8": ("`w4a16-g32-head8`", {"extends": "w4a16-g32-head8"}),
    "g64": ("`w4a16-g32`, groups of 64", {"extends": "w4a16-g32", "group_size": 64}),
}
_WITH_TABLES: Final = ("head8", "g32", "g64", "g128")
"""Uniform recipes whose size is fitted with embedding and head among what is chosen."""


@dataclass(frozen=True, slots=True)
class Row:
    """A recipe that is judged.

    Args:
        name: in files and results.
        method: that quantizes.
        title: in the report.
        values: of a recipe that is not fitted; their method is `method`, where that is not the default.
        bits: target of a fit, in bits of the Linears.
        like: row whose size is a fit's target.
        tables: whether a fit chooses for embedding and head too.
        by: losses that a fit goes by: `KL`, `output error`, or the row whose recipe it takes as it is.
    """

    name: str
    method: str
    title: str
    values: Mapping[str, Any] | None = None
    bits: float | None = None
    like: str = ""
    tables: bool = False
    by: str = "KL"

    @property
    def has_tables(self) -> bool:
        """True if embedding and head are packed, so that bits of the Linears alone are not known."""
        return self.tables or self.name.endswith("head8")


def of(method: str) -> tuple[Row, ...]:
    """Return the rows of a method."""
    return tuple(row for row in ROWS if row.method == method)


def _uniform(name: str, method: str) -> Row:
    title, values = _UNIFORM[name]
    return Row(_named(name, method), method, title, values if method == "mse" else {**values, "method": method})


def _fit(target: float | str, method: str, by: str = "KL", *, tables: bool | None = None) -> Row:
    """A fit for bits, or for the size of a uniform recipe."""
    kind = "error" if by == "output error" else "fit"
    if isinstance(target, float):
        name, asked = f"{kind}-{target:g}", f"{target:g} bits"
        return Row(_named(name, method), method, _title(by, asked), bits=target, by=by)
    tables = target in _WITH_TABLES if tables is None else tables
    asked = f"the size of {_UNIFORM[target][0]}{', tables too' if tables else ''}"
    name = _named(f"{kind}-{target}", method)
    return Row(name, method, _title(by, asked), like=target, tables=tables, by=by)


def _given(row: Row, method: str) -> Row:
    """Make the row of a recipe that a fit for another method chose."""
    title = row.title.replace("**fit**", f"**fit** for `{row.method}`")
    return Row(f"{method}-{row.name}-as-{row.method}", method, title, by=row.name, tables=row.tables)


def _title(by: str, asked: str) -> str:
    return f"**fit**{'' if by == 'KL' else f' by {by}'}, {asked}"


def _named(name: str, method: str) -> str:
    return name if method == "mse" else f"{method}-{name}"


_FITS: Final = tuple(_fit(bits, "mse") for bits in (4.5, 5.0, 5.5, 6.0, 4.25))
_BY_SIZE: Final = {name: _fit(name, "mse") for name in ("mix", *_WITH_TABLES)}
ROWS: Final[Sequence[Row]] = (
    *(_uniform(name, "mse") for name in _UNIFORM),
    *_FITS,
    *_BY_SIZE.values(),
    _fit(5.0, "mse", "output error"),
    _fit("g32", "mse", "output error"),
    *(_uniform(name, "gptq") for name in ("g32", "g128")),
    _fit("g32", "gptq"),
    *(_fit(bits, "gptq") for bits in (4.5, 5.0)),
    _uniform("mix", "gptq"),
    _fit("mix", "gptq"),
    _given(_BY_SIZE["g32"], "gptq"),
    _given(_FITS[1], "gptq"),
    *(_fit(bits, "gptq") for bits in (5.5, 6.0)),
    _uniform("head8", "gptq"),
    _fit("head8", "gptq"),
    _uniform("g64", "gptq"),
    _fit("g64", "gptq"),
    _fit("g128", "gptq"),
)
"""All rows; within a method those that say most first."""
PAIRS: Final[Mapping[str, Sequence[tuple[str, str, str]]]] = {
    "mse": (
        ("fit / `w4a16-g32`, groups of 64", "fit-4.25", "g64"),
        ("fit / `w4a16-g32`", "fit-4.5", "g32"),
        (f"fit / {_UNIFORM['mix'][0]}", "fit-mix", "mix"),
        ("fit, tables too / `w4a16-g32-head8`", "fit-head8", "head8"),
        ("fit, tables too / `w4a16-g32`", "fit-g32", "g32"),
        ("fit, tables too / `w4a16-g32`, groups of 64", "fit-g64", "g64"),
        ("fit, tables too / `w4a16-g128`", "fit-g128", "g128"),
        ("fit by output error, tables too / `w4a16-g32`", "error-g32", "g32"),
        ("fit by output error, tables too / by KL", "error-g32", "fit-g32"),
        ("fit by output error / by KL", "error-5", "fit-5"),
    ),
    "gptq": (
        ("fit / `w4a16-g32`", "gptq-fit-4.5", "gptq-g32"),
        (f"fit / {_UNIFORM['mix'][0]}", "gptq-fit-mix", "gptq-mix"),
        ("fit, tables too / `w4a16-g32-head8`", "gptq-fit-head8", "gptq-head8"),
        ("fit, tables too / `w4a16-g32`", "gptq-fit-g32", "gptq-g32"),
        ("fit, tables too / `w4a16-g32`, groups of 64", "gptq-fit-g64", "gptq-g64"),
        ("fit, tables too / `w4a16-g128`", "gptq-fit-g128", "gptq-g128"),
        ("fit, tables too / the same fit for `mse`", "gptq-fit-g32", "gptq-fit-g32-as-mse"),
        ("fit, 5 bits / the same fit for `mse`", "gptq-fit-5", "gptq-fit-5-as-mse"),
    ),
}
"""Rows of one size that the report compares: words, the one, the other."""
