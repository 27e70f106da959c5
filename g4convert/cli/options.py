"""The options that several commands share, and how errors are told.

Typer reads types, names and help from these annotations; `docs/reference/cli.md` is generated from the result. Values
of a recipe are checked by `Recipe`, not here, so that a file and an option are refused in the same words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from g4convert.gemma4.family import Family
from g4convert.request import DEFAULTS, EngineName, Level, MemoryUse

__all__ = [
    "Answers",
    "Assistant",
    "AssistantOf",
    "Autotune",
    "Calibration",
    "CalibrationFile",
    "Carry",
    "Checked",
    "Device",
    "Directory",
    "DryRun",
    "EnginePython",
    "EngineTimeout",
    "EngineUrl",
    "Engines",
    "FamilyName",
    "Fix",
    "FloatType",
    "GroupSize",
    "Html",
    "JUnit",
    "Json",
    "KvShared",
    "Layout",
    "Leave",
    "Length",
    "Manner",
    "MaxNewTokens",
    "Memory",
    "Method",
    "Model",
    "NoColor",
    "NumBits",
    "Output",
    "Overwrite",
    "Pack",
    "Profile",
    "Prompt",
    "Prompts",
    "Quiet",
    "RecipeArgument",
    "RecipeName",
    "Reference",
    "RunDevice",
    "Samples",
    "Seed",
    "ShardSize",
    "ShowConfig",
    "Signed",
    "SpeechType",
    "StoredReference",
    "Strict",
    "TensorParallel",
    "Texts",
    "Verbose",
    "VerifyAfter",
    "VerifyEngine",
    "VerifyLevel",
    "Version",
    "Workers",
]


@dataclass(slots=True)
class Manner:
    """Manner in which errors are printed; the options of the command that raises them set it."""

    verbose: bool = False
    no_color: bool = False


def _manner(ctx: typer.Context, param: typer.CallbackParam, value: bool) -> bool:  # noqa: FBT001 - as Typer calls it
    setattr(ctx.ensure_object(Manner), str(param.name), value)
    return value


def _marked(setting: str, *names: str) -> str:
    """Names that an option takes, the one that `Settings` has marked as the default."""
    default = getattr(DEFAULTS, setting)
    return ", ".join(f"{name} (default)" if name == default else name for name in names)


_RECIPE = "Recipe, and values that override it"
_SERVED = "What must load it"
_BESIDE = "Files beside the weights"
_RUN = "Run"
_PRINT = "What is printed"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=r"A directory, or org/name\[@revision] on the Hugging Face hub.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Gets FAMILY and FAMILY-W4A16.")]
FamilyName = Annotated[Family, typer.Option(metavar="FAMILY", help=f"{', '.join(Family)}.")]
Version = Annotated[bool, typer.Option("--version", metavar="", help="Print the version and stop.")]

RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", metavar="RECIPE", help="A shipped recipe or a YAML file.", rich_help_panel=_RECIPE),
]
NumBits = Annotated[
    int | None, typer.Option(metavar="N", help="4 or 8 bits per packed weight.", rich_help_panel=_RECIPE)
]
GroupSize = Annotated[
    str | None,
    typer.Option(metavar="N", help="Weights that share a scale: 32, 64, 128, or channel.", rich_help_panel=_RECIPE),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Method to find codes and scales: auto, minmax, mse, lattice, imatrix or gptq.",
        rich_help_panel=_RECIPE,
    ),
]
Signed = Annotated[
    bool | None,
    typer.Option(
        "--signed/--positive", metavar="", help="Allow mse to take negative scales, or not.", rich_help_panel=_RECIPE
    ),
]
Pack = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE",
        help="Role to pack: attention, mlp, experts, ple_projection, vision_tower; repeat for several.",
        rich_help_panel=_RECIPE,
    ),
]
KvShared = Annotated[
    str | None,
    typer.Option(metavar="WHAT", help="drop or keep unused K/V of KV-shared layers.", rich_help_panel=_RECIPE),
]
Assistant = Annotated[
    str | None,
    typer.Option(metavar="WHAT", help="keep or pack the Linears of an MTP drafter.", rich_help_panel=_RECIPE),
]
Layout = Annotated[
    str | None,
    typer.Option(metavar="WHAT", help="full or text-only.", rich_help_panel=_RECIPE),
]
ShardSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Largest output file, as 5GB or 500MB.", rich_help_panel=_RECIPE)
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="transformers, vllm or sglang; repeat for several. If one cannot, exit 1.",
        rich_help_panel=_SERVED,
    ),
]
TensorParallel = Annotated[
    list[int] | None,
    typer.Option(
        "--tp",
        metavar="N",
        min=1,
        help="Judge at so many GPUs (tensor parallel); repeat for several.",
        rich_help_panel=_SERVED,
    ),
]
Carry = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Also carry over files that would stay behind, as .gitattributes; repeat for several.",
        rich_help_panel=_BESIDE,
    ),
]
Leave = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave files beside the weights behind, as '*.png'; repeat for several.",
        rich_help_panel=_BESIDE,
    ),
]
ShowConfig = Annotated[
    bool,
    typer.Option(
        "--show-config", metavar="", help="Print each value and its origin, then stop.", rich_help_panel=_RECIPE
    ),
]

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Directory to write.", rich_help_panel=_RUN)
]
Workers = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=1024, help="Threads; 0 is one per core, or two per GPU.", rich_help_panel=_RUN
    ),
]
CalibrationFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write, ending in .safetensors.")
]
Texts = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Texts: FILE.jsonl, FILE.txt, or a dataset as org/name:split; without it the bundled ones.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(metavar="N", help="Rows of ids; without it as many as the texts fill, 128 at most.")
]
Length = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens of a row; without it twice the sliding window, 2,048 at most."),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Decides the order of texts, and answers.")]
Answers = Annotated[
    bool | None,
    typer.Option(
        "--answers/--no-answers",
        metavar="",
        help="Let MODEL answer the questions itself, or not. Default: a chat model does on a GPU, or of at most 1 GiB.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Token ids that gptq calibrates on.", rich_help_panel=_RUN),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", help="Device that quantizes: cpu, cuda (every GPU) or cuda:N.", rich_help_panel=_RUN),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", metavar="", help="Replace a checkpoint that is there.", rich_help_panel=_RUN),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", metavar="", help="Check everything, print the plan, write nothing.", rich_help_panel=_RUN
    ),
]

_VERIFY = "What is verified"

Checked = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help=r"A quantized checkpoint, also another program's: a directory, or org/name\[@revision] on the hub.",
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The original: a directory, a hub name, or a file of `g4convert reference`.",
        rich_help_panel=_VERIFY,
    ),
]
VerifyLevel = Annotated[
    Level | None,
    typer.Option(
        metavar="LEVEL",
        help="Last level to run: static, weights, logits or engine. Default: what the other options ask for, or else "
        "weights, and static without a reference.",
        rich_help_panel=_VERIFY,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Thresholds of level logits: {_marked('profile', 'w4a16', 'qat', 'parity')}, or a YAML file.",
        rich_help_panel=_VERIFY,
    ),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix",
        metavar="",
        help="Correct its quantization_config, if that is what is wrong; the old file becomes config.json.orig.",
        rich_help_panel=_VERIFY,
    ),
]
AssistantOf = Annotated[
    str | None,
    typer.Option(metavar="TARGET", help="Check that this MTP drafter fits a target model.", rich_help_panel=_VERIFY),
]
Strict = Annotated[bool, typer.Option("--strict", metavar="", help="A warning fails.", rich_help_panel=_VERIFY)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Your own text, in place of the bundled: JSON lines, {"messages": \\[...]} each for a model with a chat '
        'template, {"prompt": "..."} for a base model.',
        rich_help_panel=_VERIFY,
    ),
]
Memory = Annotated[
    MemoryUse | None,
    typer.Option(
        metavar="HOW",
        help=f"resident, stream (one layer at a time), or {_marked('memory', 'auto')}: what fits.",
        rich_help_panel=_RUN,
    ),
]
FloatType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help=f"Dtype of the forward: {_marked('dtype', 'float32')} or bfloat16.",
        rich_help_panel=_RUN,
    ),
]
VerifyEngine = Annotated[
    EngineName | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Level engine: vllm (started here) or sglang (a server that runs).",
        rich_help_panel=_VERIFY,
    ),
]
EnginePython = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="The interpreter that has vLLM; this one by default.", rich_help_panel=_RUN),
]
EngineUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the SGLang server: http://HOST:PORT.", rich_help_panel=_RUN),
]
EngineTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=1,
        help=f"Seconds to wait for the engine to start, and for each answer (default {DEFAULTS.engine_timeout:g}).",
        rich_help_panel=_RUN,
    ),
]
RunDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help=f"Device that runs the model: {_marked('device', 'cpu', 'cuda')} or cuda:N.",
        rich_help_panel=_RUN,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="Text to answer; - reads it from stdin; repeat for several.",
        rich_help_panel=_RUN,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", metavar="N", min=1, max=1 << 20, help="The longest answer.", rich_help_panel=_RUN),
]
Autotune = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="First measure how the kernels are best cut on this GPU (minutes), and add that to a table there.",
        rich_help_panel=_RUN,
    ),
]
SpeechType = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="Dtype of the forward: bfloat16 or float32.", rich_help_panel=_RUN),
]
StoredReference = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: ref.safetensors.")
]
VerifyAfter = Annotated[
    str,
    typer.Option(
        "--verify", metavar="LEVEL", help="Verify at the end: none, static, weights or logits.", rich_help_panel=_RUN
    ),
]
JUnit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="The report as JUnit XML.", rich_help_panel=_PRINT)
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="The report as one page.", rich_help_panel=_PRINT)
]

Json = Annotated[bool, typer.Option("--json", metavar="", help="The result as JSON.", rich_help_panel=_PRINT)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", metavar="", help="No progress; no summary if all is well.", rich_help_panel=_PRINT),
]
NoColor = Annotated[
    bool,
    typer.Option(
        "--no-color",
        metavar="",
        callback=_manner,
        help="Plain text; NO_COLOR does the same.",
        rich_help_panel=_PRINT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        metavar="",
        callback=_manner,
        help="Every tensor, and every line of a long error.",
        rich_help_panel=_PRINT,
    ),
]
