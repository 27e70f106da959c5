"""Reader of untrusted YAML as plain values: no aliases, no repeated keys, no numbers beyond 64 bits.

Ten lines of aliases can expand to 10^9 values, and some programs take the last value of a repeated key. A recipe or a
profile needs neither.
"""

from typing import Any, Final

import yaml

_LARGEST_NUMBER: Final = 1 << 63


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call] # the library's
            raise _make_fault(f"an alias (*{event.anchor}), which is not read: write the value again", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- as the library declares it
        """Refuse a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _make_fault(f"the key {key.value[:80]} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse numbers beyond 64 bits: no setting is so large, and Python does not print thousands of digits."""
        value = int(super().construct_yaml_int(node))
        if abs(value) >= _LARGEST_NUMBER:
            raise _make_fault("a number beyond 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str) -> object:
    """Return the content of a YAML document.

    Raises:
        YAMLError: not valid YAML, or it has an alias, a repeated key or a number beyond 64 bits.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a safe loader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deep to be read") from error
    except (ValueError, OverflowError) as error:  # an invalid date or number
        raise yaml.YAMLError(str(error)) from error


def _make_fault(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
