"""Running, writing and printing of reports for `g4convert verify` and the end of `g4convert quantize`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4convert.checkpoint.source import Source
from g4convert.checkpoint.uses import original
from g4convert.cli import show, show_report
from g4convert.errors import GateError, UsageError
from g4convert.places import already_exists, check_apart
from g4convert.progress import Progress, open_display
from g4convert.report import Report, Severity
from g4convert.whole_files import check_writable, write_whole

if TYPE_CHECKING:
    from g4convert.request import Request


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """Options for printing and writing a report.

    Args:
        quiet: print no progress, and no report that passes.
        verbose: print every finding.
        no_color: print plain text.
        strict: count a warning as a failure.
        junit: file to write as JUnit XML; None writes none.
        html: file to write as an HTML page; None writes none.
    """

    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    strict: bool = False
    junit: Path | None = None
    html: Path | None = None

    def check_places(self, output: Path, *read: Path) -> None:
        """Check that the report files can be written, before anything is read.

        Args:
            output: the verified checkpoint.
            read: other files and directories that the verification reads.

        Raises:
            UsageError: a file would lie in a checkpoint, in no directory, or replace what is read.
            EnvironmentFault: the system allows no file there.
        """
        files = [path for path in (self.junit, self.html) if path is not None]
        check_apart(files, (output, *read))
        for path in files:
            check_writable(path)

    def open_progress(self) -> Progress:
        """Return a display of progress on stderr; it shows nothing if quiet."""
        return open_display(show.messages(no_color=self.no_color), quiet=self.quiet)


def print_report(report: Report, options: PrintOptions) -> None:
    """Print the report as text on stdout; if quiet, only a report that does not pass."""
    if not options.quiet or report.exit_code(strict=options.strict):
        out = show.console(no_color=options.no_color)
        show_report.print_report(out, report, strict=options.strict, verbose=options.verbose)


def print_end(report: Report, options: PrintOptions, *, as_json: bool) -> None:
    """Print the result of the verification at the end of a conversion.

    Raises:
        GateError: the verification failed; the output is kept.
    """
    if report.verdict is not Severity.PASS and not as_json:  # a warning is printed, too, with its reason
        show_report.print_report(show.console(no_color=options.no_color), report, strict=False, verbose=options.verbose)
    elif not as_json and not options.quiet:
        show_report.print_verdict(show.console(no_color=options.no_color), report, strict=False)
    if report.verdict is Severity.FAIL:
        raise GateError(
            f"{report.output}: does not verify ({', '.join(report.levels)})",
            offenders=[] if not as_json else [finding.line for finding in report.of(Severity.FAIL)],
            hint="the output is kept; `g4convert verify` tells more, `--verify none` does without",
        )


def store_reference(source: Source, request: "Request", options: PrintOptions, *, overwrite: bool) -> dict[str, Any]:
    """Run a model and store its answers as a reference file; a file that the same command made is kept.

    Returns:
        Facts about the stored reference, as JSON values; `already_done` is true if it was there.

    Raises:
        UsageError: the file exists and is another, or cannot be written.
        G4Error: see `verification.logits.level.store_reference`.
    """
    path = request.output
    if path.exists() and not path.is_file():
        raise already_exists(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a stored reference ends in .safetensors", hint=f"-o {path.name}.safetensors")
    check_apart([path], [source.path, *([] if request.prompts is None else [request.prompts])])
    is_kept = path.is_file() and not overwrite
    if not is_kept:
        check_writable(path)
    checkpoint = original(source.path)
    from g4convert.verification.logits.level import read_reference, store_reference  # brings torch and transformers
    from g4convert.verification.logits.scores import TopLogits

    stored = read_reference(checkpoint, path, request) if is_kept else None
    done = {} if stored is None else {"already_done": True}
    if stored is None:
        with options.open_progress() as progress:
            stored = store_reference(checkpoint, path, request, overwrite=overwrite, progress=progress)
    predictions = sum(len(probe.targets) for probe in stored.probes)
    logits = next(iter(stored.kept.values())).logits
    counts: dict[str, int | None] = {
        "probes": len(stored.probes),
        "tokens": predictions,
        "likeliest": logits.ids.shape[-1] if isinstance(logits, TopLogits) else None,
        "bytes": path.stat().st_size,
    }
    return {"schema_version": 1, "output": str(path), "model": source.name, **counts, **stored.facts, **done}


def write_files(report: Report, options: PrintOptions, *, say: bool) -> None:
    """Write the report as JUnit XML and as an HTML page, where such files are requested; with `say`, name them."""
    written = {}
    if options.junit is not None:
        from g4convert.verification.page.junit import junit

        write_whole(options.junit, junit(report, strict=options.strict))
        written[options.junit] = "JUnit XML"
    if options.html is not None:
        from g4convert.verification.page.html import page

        write_whole(options.html, page(report.to_dict()))
        written[options.html] = "HTML page"
    if say and not options.quiet:
        for path, what in written.items():
            line = f"written {path} ({what})"
            show.console(no_color=options.no_color).print(line, markup=False, highlight=False, soft_wrap=True)
