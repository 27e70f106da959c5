"""Pairing of each weight of the source with the output's tensors of the same name.

    packed in the output     decoded and measured                  PackedPair
    plain in the output      the same bytes, at the same dtype     KeptPair

Level `static` reports a weight that the output lacks; this level reports a weight that cannot be decoded or has
another dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.checkpoint.stored import PackedModule, stored_scheme, unreadable
from g4convert.gemma4 import TABLES, Inventory, Role, Weight
from g4convert.names import Name
from g4convert.report import Finding, Severity
from g4convert.tensors import TensorInfo
from g4convert.verification.static.packing import AGAIN
from g4convert.verification.weights.measured import PackedPair, Place, place


@dataclass(frozen=True, slots=True)
class KeptPair:
    """A tensor, or an expert's part of one, that must have the bytes of its source.

    Args:
        name: name in the output.
        source: file and byte offset in the source.
        out: file and byte offset in the output.
        nbytes: size of the tensor, bytes.
        itemsize: size of one element, bytes.
        exponent: mask of an element's exponent; 0 if it may be infinite, or is no float.
        moved: shape in the source of a convolution that is stored channels-last there; empty for other tensors.
    """

    name: str
    source: tuple[str, int]
    out: tuple[str, int]
    nbytes: int
    itemsize: int
    exponent: int = 0
    moved: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ElementCounts:
    """Numbers of a kept tensor's elements that differ from the source's, and that are NaN or infinite there."""

    different: int = 0
    endless: int = 0

    def __add__(self, other: "ElementCounts") -> "ElementCounts":
        return ElementCounts(self.different + other.different, self.endless + other.endless)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The source and the output, with the readers of their files (`plain`, `written`)."""

    source: Checkpoint
    out: Checkpoint
    plain: Reader
    written: Reader

    def pairs(self, inventory: Inventory, contents: Contents) -> Iterator[PackedPair | KeptPair | Finding]:
        """Yield a pair for every weight of the source that the output has, in the order of the model.

        Yields a finding in place of the pair if the weight cannot be compared.
        """
        source = inventory.architecture
        fused = {
            expert: (number, experts.shape)
            for experts in contents.fused.values()
            for number, expert in enumerate(experts.names)
        }
        for weight in inventory.weights:
            name = source.name_in(contents.architecture, weight.name)
            form = contents.stored.get(name) if name else None
            if name is None or form is None:
                continue
            if isinstance(form, PackedModule):
                number, shape = fused[name] if form.fused else (0, weight.shape)
                yield self._pair_packed(weight, name, form, shape, number)
            else:
                number = fused[name][0] if name in fused and form.numel != weight.info.numel else 0
                yield self._pair_kept(weight, name, form, number)
        yield from self._pair_extras(inventory)

    def _pair_packed(
        self, weight: Weight, name: str, form: PackedModule, shape: tuple[int, ...], number: int
    ) -> PackedPair | Finding:
        module = Name(name).module
        scheme = stored_scheme(form, shape, None)
        bits = scheme.num_bits
        is_matrix = weight.linear or weight.role in TABLES
        fault = unreadable(form, scheme) or ("" if is_matrix else f"a {weight.role} that is no Linear and no table")
        if fault or bits is None:
            return Finding("weights.form", Severity.FAIL, module, fault, "packed words that can be decoded", AGAIN)
        n, k = weight.shape
        origin = self.source.tensors[weight.segment.source]
        parts = {part: self.out.tensors[info.name] for part, info in form.parts.items()}
        zeros = parts.get("weight_zero_point")
        return PackedPair(
            name=module,
            weight=weight,
            num_bits=bits,
            source=Place(self.plain, origin.file, origin.begin + weight.segment.begin, (n, k), weight.dtype),
            words=place(self.written, parts["weight_packed"], n, number),
            scale=place(self.written, parts["weight_scale"], n, number),
            zero_point=place(self.written, zeros, -(-n * bits // 32), number) if zeros else None,
        )

    def _pair_kept(self, weight: Weight, name: str, form: TensorInfo, number: int) -> KeptPair | Finding:
        nbytes, begin = weight.info.nbytes, number * weight.info.nbytes
        if form.dtype is not weight.dtype or begin + nbytes > form.nbytes:
            found = f"{form.dtype.value} {[*form.shape]}"
            return Finding("weights.kept", Severity.FAIL, name, found, f"{weight.dtype.value} {[*weight.shape]}", AGAIN)
        origin, stored = self.source.tensors[weight.segment.source], self.out.tensors[form.name]
        return KeptPair(
            name=name,
            source=(origin.file, origin.begin + weight.segment.begin),
            out=(stored.file, stored.begin + begin),
            nbytes=nbytes,
            itemsize=weight.dtype.itemsize,
            exponent=0 if weight.role is Role.CLIP else weight.dtype.exponent,
            moved=origin.info.shape if weight.channels_last else (),
        )

    def _pair_extras(self, inventory: Inventory) -> Iterator[KeptPair]:
        """Yield pairs of the source's extra tensors that the output has, too, with the same dtype and shape."""
        for extra in inventory.extras:
            original, stored = self.source.tensors[extra.source], self.out.tensors.get(extra.source)
            if stored is not None and stored.info == original.info:
                places = (original.file, original.begin), (stored.file, stored.begin)
                yield KeptPair(extra.source, *places, original.info.nbytes, original.info.dtype.itemsize)
