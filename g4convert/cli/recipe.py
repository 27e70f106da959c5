"""`recipe list`, `recipe show`, `recipe check` and `recipe schema`."""

from g4convert.cli.options import Json, NoColor
from g4convert.cli.printing import print_json, print_settings, print_text
from g4convert.cli.recipe_options import RecipeArgument


def list_(*, as_json: Json = False, no_color: NoColor = False) -> None:
    """List the recipes that come with g4convert."""
    from g4convert.cli.show import console, print_pairs
    from g4convert.planning.recipe import DEFAULT
    from g4convert.planning.recipe_files import load_shipped

    descriptions = {name: recipe.description for name, recipe in load_shipped().items()}
    if as_json:
        print_json(descriptions)
    else:
        with_default = {name: f"{text} (default)" if name == DEFAULT else text for name, text in descriptions.items()}
        print_pairs(console(no_color=no_color), with_default)


def show(name: RecipeArgument) -> None:
    """Print a recipe as it is written, with the command that runs it."""
    from g4convert.planning.recipe_files import load, read_source

    load(name)
    print_text(read_source(name)[0])


def check(name: RecipeArgument, *, as_json: Json = False, no_color: NoColor = False) -> None:
    """Check a recipe and print every value with its origin."""
    from g4convert.planning.recipe_files import load

    print_settings(load(name), as_json=as_json, no_color=no_color)


def schema() -> None:
    """Print the JSON schema of a recipe, for editors and CI."""
    from g4convert.planning.recipe import make_schema

    print_json(make_schema())
