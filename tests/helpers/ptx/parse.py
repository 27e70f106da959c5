"""The text of one PTX kernel, taken apart: registers, labels, and instructions whose operands are still text.

Triton writes one `.entry` to a file. Inline assembly comes as a block in braces with registers of its own; these get
names that no other block has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_IGNORED = re.compile(r"//[^\n]*|/\*.*?\*/|^\s*\.loc\b[^\n]*", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(
    r"\.visible\s+\.entry\s+(\w+)\((.*?)\)\s*\.reqntid\s+(\d+)\s*(\.minnctapersm\s+\d+\s*)?\{", re.DOTALL
)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?(\w+)")
_STATEMENT = re.compile(r"\s*(?:(?P<brace>[{}])|(?P<label>[$\w]+):|(?P<code>[^;]+);)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_INSTRUCTION = re.compile(
    r"(?:@(?P<unless>!?)(?P<guard>\S+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.DOTALL
)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_NAME = re.compile(r"[%$A-Za-z_][\w.$]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Args:
        text: as it stands in the file.
        opcode: with all its modifiers.
        operands: their text.
        guard: the predicate it depends on, or empty.
        unless: whether it runs where the predicate is false.
    """

    text: str
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""
    unless: bool = False


@dataclass(slots=True)
class Program:
    """A kernel.

    Args:
        name: name of the entry.
        parameters: type of each, by name, in order.
        threads: threads of a block.
        registers: bits of each, by name; 1 for a predicate.
        instructions: in the order of the file.
        labels: the instruction that each stands before.
    """

    name: str
    parameters: dict[str, str]
    threads: int
    registers: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> Program:
    """Take a file apart.

    Raises:
        ValueError: there is something in it that is not known here.
    """
    text = _IGNORED.sub("", text)
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise ValueError(f"{len(entries)} entries of a form that is known, expected 1")
    name, parameters, threads, _ = entries[0].groups()
    program = Program(name, {name: kind for kind, name in _PARAMETER.findall(parameters)}, int(threads))
    scopes: list[dict[str, str]] = []
    for piece, kind in _pieces(text, entries[0].end()):
        match kind, piece:
            case "brace", "{":
                scopes.append({})
            case "brace", _:
                scopes.pop()
            case "label", _:
                program.labels[piece] = len(program.instructions)
            case _ if declared := _REGISTERS.fullmatch(piece):
                _declare(program, declared[1], declared[2], scopes)
            case _ if not piece.startswith(".pragma"):
                program.instructions.append(_instruction(piece, scopes))
    return program


def _pieces(text: str, at: int) -> Iterator[tuple[str, str]]:
    """Braces of blocks, labels and statements, up to the brace that closes the kernel."""
    depth = 1
    while depth:
        found = _STATEMENT.match(text, at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"not a statement: {text[at : at + 80]!r}")
        at, kind, piece = found.end(), found.lastgroup, found[found.lastgroup].strip()
        depth += {"{": 1, "}": -1}.get(piece, 0) if kind == "brace" else 0
        if depth:
            yield piece, kind


def _declare(program: Program, kind: str, names: str, scopes: list[dict[str, str]]) -> None:
    bits = 1 if kind == "pred" else int(kind[1:])
    for name in (name.strip() for name in names.split(",")):
        if scopes:
            own = scopes[-1][name] = f"{name}.{len(program.registers)}"
            program.registers[own] = bits
        elif name.endswith(">"):
            stem, _, count = name[:-1].partition("<")
            program.registers |= {f"{stem}{number}": bits for number in range(int(count))}
        else:
            program.registers[name] = bits


def _instruction(text: str, scopes: list[dict[str, str]]) -> Instruction:
    parts = _INSTRUCTION.fullmatch(text)
    if parts is None:
        raise ValueError(f"not an instruction: {text!r}")
    own = {name: unique for scope in scopes for name, unique in scope.items()}
    operands = _NAME.sub(lambda name: own.get(name[0], name[0]), parts["operands"])
    return Instruction(
        " ".join(text.split()),
        parts["opcode"],
        tuple(operand.strip() for operand in _OPERAND.findall(operands)),
        parts["guard"] or "",
        parts["unless"] == "!",
    )
