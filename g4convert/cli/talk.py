"""Printing of the answers of `generate`: text on stdout, messages on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from g4convert.cli.show import console, messages
from g4convert.cli.tables import print_prose
from g4convert.quantities import plural

if TYPE_CHECKING:
    from g4convert.forward.generation import Answer


class Talk:
    """Printer of answers while they are generated: text on stdout, messages on stderr.

    Args:
        no_color: print plain text.
        quiet: print answers only.
        mute: print nothing.
        several: repeat each prompt before its answer.
    """

    def __init__(self, *, no_color: bool, quiet: bool, mute: bool, several: bool) -> None:
        self._out, self._messages = console(no_color=True), messages(no_color=no_color)
        self._quiet, self._mute, self._several = quiet or mute, mute, several
        self._prompts_shown = 0

    def print_loading(self, model: str) -> None:
        """Print that a model is being loaded, which takes seconds to minutes."""
        if not self._quiet:
            self._messages.print(f"[dim]loading {escape(model)}[/]", soft_wrap=True)

    def print_tiles(self, path: Path, products: int) -> None:
        """Print that a table of tiles was written."""
        if not self._quiet:
            words = f"{path}: tiles of {plural(products, 'product')}; G4CONVERT_TILES={path} uses them again"
            self._messages.print(f"[dim]{escape(words)}[/]", soft_wrap=True)

    @contextmanager
    def show_prompt(self, prompt: str) -> Iterator[None]:
        """Print a prompt, if there are several, and end the line of its answer on exit, also after an error."""
        if self._prompts_shown:
            self.show("\n")
        self._prompts_shown += 1
        if self._several and not self._quiet:
            self._messages.print(f"[dim]> {escape(prompt)}[/]", soft_wrap=True)
        try:
            yield
        finally:
            self.show("\n")

    def show(self, text: str) -> None:
        """Print a piece of the answer."""
        if not self._mute:
            self._out.out(text, end="", highlight=False)

    def print_speed(self, answer: "Answer", device: str) -> None:
        """Print the number of tokens, the device, the time to the first token, and the speed."""
        if not self._quiet:
            speed = "" if answer.tokens_per_second is None else f", then {answer.tokens_per_second:.1f} tokens/s"
            cut = "the context" if answer.is_full else "--max-new-tokens"
            end = "" if answer.ended else f"; {cut} ended it"
            tokens = f"{plural(len(answer.token_ids), 'token')} on {device}"
            words = f"{tokens}: the first after {answer.prefill_seconds:.2f} s{speed}{end}"
            print_prose(self._messages, f"[dim]{words}[/]")
